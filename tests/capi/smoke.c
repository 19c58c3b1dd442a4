/* Opening, tokens and text, sessions, generating, and everything that can be wrong with the arguments. */
#include "checks.h"

/* ---- generating ------------------------------------------------------------------------------------------------- */

typedef struct {
    char text[4096];
    size_t len;
    int pieces;
    int stop_after; /* 0: never */
    onlay_session *session;
} Heard;

static int hear(void *user, const char *piece, size_t len) {
    Heard *h = user;
    CHECK(len > 0 && h->len + len < sizeof h->text);
    memcpy(h->text + h->len, piece, len);
    h->len += len;
    h->pieces++;
    if (h->session) { /* a call on the session from inside its own callback */
        onlay_error *inner = NULL;
        uint32_t token = 1;
        CHECK(onlay_session_append_tokens(h->session, &token, 1, &inner) == ONLAY_BUSY);
        CHECK(onlay_error_status(inner) == ONLAY_BUSY && strstr(onlay_error_message(inner), "another call"));
        onlay_error_free(inner);
        CHECK(onlay_session_truncate(h->session, 0, NULL) == ONLAY_BUSY);
        CHECK(onlay_session_generate(h->session, NULL, NULL, NULL, NULL, NULL) == ONLAY_BUSY);
    }
    return h->stop_after > 0 && h->pieces == h->stop_after;
}

static void serving(const onlay_model *model) {
    onlay_session_options options;
    onlay_session *session = NULL;
    onlay_generated result;
    onlay_generate_options o;
    Heard heard;
    uint64_t bytes = 0, more = 0;
    uint32_t tokens[64], first[64];
    size_t n = 0, m = 0;
    onlay_text stop[2];

    OKAY(onlay_session_options_init(&options, sizeof options, &error));
    CHECK(options.rows == 512 && options.kv == ONLAY_KV_F16 && options.adapter_rank == 64 && options.polite == 0);
    options.context = 64;
    options.threads = 2;
    OKAY(onlay_session_plan(model, &options, &bytes, &error));
    options.context = 128;
    OKAY(onlay_session_plan(model, &options, &more, &error));
    CHECK(bytes > 1000 && more > bytes);
    options.context = 64;

    /* devices: no such name, and one that no machine has */
    options.device.data = "gpu";
    options.device.len = 3;
    WRONG(ONLAY_ARGUMENT, "cuda:0", onlay_session_new(model, &options, &session, &error));
    options.device.data = "cuda:999";
    options.device.len = 8;
    CHECK(onlay_session_new(model, &options, &session, &error) != ONLAY_OK && session == NULL);
    CHECK(onlay_error_status(error) == ONLAY_UNSUPPORTED || onlay_error_status(error) == ONLAY_DEVICE);
    onlay_error_free(error);
    error = NULL;
    options.device.data = "cpu";
    options.device.len = 3;
    options.gpu_memory = 5;
    WRONG(ONLAY_ARGUMENT, "GPU", onlay_session_new(model, &options, &session, &error));
    options.gpu_memory = 0;
    options.polite = 2;
    WRONG(ONLAY_ARGUMENT, "polite", onlay_session_new(model, &options, &session, &error));
    options.polite = 0;
    OKAY(onlay_session_new(model, &options, &session, &error));

    WRONG(ONLAY_ARGUMENT, "at least 1", onlay_session_generate(session, NULL, NULL, NULL, NULL, &error));
    CHECK(run(session, first, 64) > 24);

    /* pieces, their sum, a busy session inside the callback */
    memset(&heard, 0, sizeof heard);
    heard.session = session;
    OKAY(onlay_session_truncate(session, 9, &error));
    o = generating(16, 0);
    memset(&result, 0, sizeof result);
    result.struct_size = sizeof result;
    OKAY(onlay_session_generate(session, &o, hear, &heard, &result, &error));
    CHECK(result.tokens == 16 && result.end == ONLAY_END_LENGTH && heard.pieces > 0);
    OKAY(onlay_session_tokens(session, tokens, 64, &n, &error));
    CHECK(n == 9 + 16);
    CHECK(onlay_session_tokens(session, tokens, 3, &m, NULL) == ONLAY_BUFFER && m == n);
    OKAY(onlay_session_tokens(session, NULL, 0, &m, &error));
    CHECK(m == n);

    /* the callback ends it, and the session goes on */
    memset(&heard, 0, sizeof heard);
    heard.stop_after = 2;
    OKAY(onlay_session_generate(session, &o, hear, &heard, &result, &error));
    CHECK(result.end == ONLAY_END_CALLER && heard.pieces == 2 && result.tokens < 16);
    OKAY(onlay_session_generate(session, &o, NULL, NULL, &result, &error));

    /* a stop string is not part of the text: the text of before, up to its third byte */
    memset(&heard, 0, sizeof heard);
    OKAY(onlay_session_truncate(session, 9, &error));
    OKAY(onlay_session_generate(session, &o, hear, &heard, &result, &error));
    {
        char whole[4096];
        size_t len = heard.len, k = 0;
        memcpy(whole, heard.text, len);
        while (k < len && (whole[k] & 0x80)) k++; /* a stop string must be UTF-8: take an ASCII byte */
        if (k < len) {
            stop[0] = text("never in the text of such a model");
            stop[1].data = whole + k;
            stop[1].len = 1;
            o.stop = stop;
            o.stop_len = 2;
            memset(&heard, 0, sizeof heard);
            OKAY(onlay_session_truncate(session, 9, &error));
            OKAY(onlay_session_generate(session, &o, hear, &heard, &result, &error));
            CHECK(result.end == ONLAY_END_STOP && heard.len == k && memcmp(heard.text, whole, k) == 0);
        } else {
            printf("skipped: the model wrote no ASCII\n");
        }
    }

    /* the context fills up */
    o = generating(0, 0);
    OKAY(onlay_session_generate(session, &o, NULL, NULL, &result, &error));
    CHECK(result.end == ONLAY_END_CONTEXT);
    WRONG(ONLAY_ARGUMENT, "at most 64", onlay_session_append_text(session, "x", 1, 0, &error));

    /* options out of range */
    o.top_p = 2;
    o.repeat_penalty = -1;
    WRONG(ONLAY_ARGUMENT, "2 things are wrong", onlay_session_generate(session, &o, NULL, NULL, NULL, &error));
    o = generating(1, 0);
    o.stop_len = (size_t)-1;
    WRONG(ONLAY_ARGUMENT, "stop_len", onlay_session_generate(session, &o, NULL, NULL, NULL, &error));
    o = generating(1, 0);
    o.reserved = 1;
    WRONG(ONLAY_UNSUPPORTED, "reserved", onlay_session_generate(session, &o, NULL, NULL, NULL, &error));
    o.struct_size = 3;
    WRONG(ONLAY_ARGUMENT, "struct_size", onlay_session_generate(session, &o, NULL, NULL, NULL, &error));
    tokens[0] = 4000000000u;
    WRONG(ONLAY_ARGUMENT, "below 272", onlay_session_append_tokens(session, tokens, 1, &error));
    options.context = (uint64_t)1 << 60;
    {
        onlay_session *none = session;
        WRONG(ONLAY_ARGUMENT, "context", onlay_session_new(model, &options, &none, &error));
        CHECK(none == NULL);
    }
    options.context = 64;
    options.kv = 99;
    WRONG(ONLAY_ARGUMENT, "kv", onlay_session_plan(model, &options, &bytes, &error));

    /* a newer program with an older library */
    {
        struct { onlay_session_options known; uint64_t unknown; } newer;
        OKAY(onlay_session_options_init(&newer.known, sizeof newer, &error));
        CHECK(newer.unknown == 0 && newer.known.struct_size == sizeof newer);
        OKAY(onlay_session_plan(model, &newer.known, &bytes, &error));
        newer.unknown = 1;
        WRONG(ONLAY_UNSUPPORTED, "does not know", onlay_session_plan(model, &newer.known, &bytes, &error));
    }
    CHECK(run(session, tokens, 64) == run(session, first, 64) && memcmp(tokens, first, 24 * sizeof *first) == 0);
    onlay_session_free(session);
}

/* ---- tokens and text -------------------------------------------------------------------------------------------- */

static void texts(const onlay_model *model) {
    static const char said[] = "the land and the sea <|end_of_text|>";
    static const char talk[] = "[{\"role\":\"user\",\"content\":\"land?\"}]";
    static const char more[] =
        "{\"messages\":[{\"role\":\"user\",\"content\":\"land?\"}],\"variables\":{\"tone\":\"dry\"}}";
    uint32_t tokens[128];
    char back[256];
    size_t n = 0, m = 0, len = 0;
    onlay_model_info info;

    memset(&info, 0, sizeof info);
    info.struct_size = sizeof info;
    OKAY(onlay_model_info_get(model, &info, &error));
    CHECK(info.vocabulary == 272 && info.context == 256 && info.bos == 270 && info.eos == 271);
    CHECK(info.has_tokenizer == 1 && info.has_template == 1);

    OKAY(onlay_model_tokenize(model, said, strlen(said), 0, NULL, 0, &n, &error));
    CHECK(n > 5);
    WRONG(ONLAY_BUFFER, "are needed", onlay_model_tokenize(model, said, strlen(said), 0, tokens, n - 1, &m, &error));
    CHECK(m == n);
    OKAY(onlay_model_tokenize(model, said, strlen(said), 0, tokens, 128, &m, &error));
    OKAY(onlay_model_detokenize(model, tokens, m, 0, back, sizeof back, &len, &error));
    CHECK(len == strlen(said) && memcmp(back, said, len) == 0);
    OKAY(onlay_model_tokenize(model, said, strlen(said), ONLAY_ADD_SPECIAL | ONLAY_PARSE_SPECIAL, tokens, 128,
              &m, &error));
    CHECK(tokens[0] == 270 && tokens[m - 1] == 271 && m < n);
    OKAY(onlay_model_detokenize(model, tokens, 1, ONLAY_PARSE_SPECIAL, back, sizeof back, &len, &error));
    CHECK(len == strlen("<|begin_of_text|>"));
    OKAY(onlay_model_tokenize(model, NULL, 0, 0, tokens, 128, &m, &error));
    CHECK(m == 0);
    WRONG(ONLAY_ARGUMENT, "flags", onlay_model_tokenize(model, said, 3, 64, tokens, 128, &m, &error));

    OKAY(onlay_model_render(model, talk, strlen(talk), ONLAY_GENERATION_PROMPT, back, sizeof back, &len,
              tokens, 128, &n, &error));
    CHECK(len == strlen("<|begin_of_text|>user: land?\nassistant: ") && tokens[0] == 270 && tokens[1] != 270);
    CHECK(memcmp(back + len - 11, "assistant: ", 11) == 0);
    OKAY(onlay_model_render(model, talk, strlen(talk), 0, NULL, 0, &m, NULL, 0, &n, &error));
    CHECK(m == len - 11);
    memset(back, 'x', sizeof back);
    WRONG(ONLAY_BUFFER, "tokens", onlay_model_render(model, talk, strlen(talk), 0, back, sizeof back, &m,
              tokens, 2, &n, &error));
    CHECK(m == len - 11 && n > 2 && back[0] == 'x');
    OKAY(onlay_model_render(model, more, strlen(more), 0, back, sizeof back, &m, NULL, 0, &n, &error));
    CHECK(m > 4 && memcmp(back, "<|begin_of_text|>(dry)", 22) == 0);
    WRONG(ONLAY_DATA, "JSON", onlay_model_render(model, talk, 5, 0, NULL, 0, &m, NULL, 0, &n, &error));
    WRONG(ONLAY_DATA, "role", onlay_model_render(model, "[{}]", 4, 0, NULL, 0, &m, NULL, 0, &n, &error));
    WRONG(ONLAY_TEMPLATE, "nobody", onlay_model_render(model, "[]", 2, 0, NULL, 0, &m, NULL, 0, &n, &error));
}

/* Two threads on one session: each call either works or is refused, and what is left is a session. */
static void *crowd(void *user) {
    onlay_session *session = user;
    long busy = 0, i;
    for (i = 0; i < 200; i++) {
        onlay_generate_options o = {0};
        onlay_status status;
        onlay_generate_options_init(&o, sizeof o, NULL);
        o.max_tokens = 1;
        o.temperature = 0;
        status = onlay_session_generate(session, &o, NULL, NULL, NULL, NULL);
        CHECK(status == ONLAY_OK || status == ONLAY_BUSY);
        busy += status == ONLAY_BUSY;
        status = onlay_session_truncate(session, 5, NULL);
        CHECK(status == ONLAY_OK || status == ONLAY_BUSY);
    }
    return (void *)busy;
}

static void crowding(const onlay_model *model) {
    onlay_session *session = NULL;
    pthread_t others[3];
    uint32_t before[64], after[64];
    size_t n;
    int i;
    OKAY(onlay_session_new(model, NULL, &session, &error));
    n = run(session, before, 64);
    for (i = 0; i < 3; i++) CHECK(pthread_create(&others[i], NULL, crowd, session) == 0);
    crowd(session);
    for (i = 0; i < 3; i++) CHECK(pthread_join(others[i], NULL) == 0);
    CHECK(run(session, after, 64) == n && memcmp(before, after, n * sizeof *before) == 0);
    onlay_session_free(session);
}

int main(int argc, char **argv) {
    onlay_model *model = NULL, *again = NULL, *other = NULL;
    onlay_session *session = NULL;
    size_t n = 0;
    const char *path;
    if (argc != 2) return 2;
    snprintf(folder, sizeof folder, "%s", argv[1]);

    CHECK(onlay_abi_version() == ONLAY_ABI_VERSION && strchr(onlay_version(), '.'));
    CHECK(strcmp(onlay_status_name(ONLAY_MISMATCH), "mismatch") == 0);
    CHECK(strcmp(onlay_status_name(12345), "unknown") == 0);
    CHECK(onlay_error_status(NULL) == ONLAY_OK && onlay_error_message(NULL)[0] == 0);
    onlay_error_free(NULL);
    onlay_model_free(NULL);
    onlay_session_free(NULL);
    onlay_adapter_free(NULL);

    path = file(0, "nothing-here.gguf");
    WRONG(ONLAY_IO, "nothing-here.gguf", onlay_model_open(path, strlen(path), &model, &error));
    CHECK(onlay_model_open(path, strlen(path), &model, NULL) == ONLAY_IO && model == NULL);
    path = file(0, "train.jsonl");
    WRONG(ONLAY_FORMAT, "train.jsonl", onlay_model_open(path, strlen(path), &model, &error));
    WRONG(ONLAY_ARGUMENT, "empty", onlay_model_open(NULL, 0, &model, &error));
    WRONG(ONLAY_ARGUMENT, "path: NULL", onlay_model_open(NULL, 5, &model, &error));
    WRONG(ONLAY_ARGUMENT, "model: NULL", onlay_model_open("x", 1, NULL, &error));
    WRONG(ONLAY_ARGUMENT, "model: NULL", onlay_session_new(NULL, NULL, &session, &error));
    WRONG(ONLAY_ARGUMENT, "model: NULL", onlay_model_tokenize(NULL, "x", 1, 0, NULL, 0, &n, &error));
    WRONG(ONLAY_ARGUMENT, "session: NULL", onlay_session_generate(NULL, NULL, NULL, NULL, NULL, &error));

    path = file(0, "model.gguf");
    OKAY(onlay_model_open(path, strlen(path), &model, &error));
    OKAY(onlay_model_open(path, strlen(path), &again, &error));
    path = file(0, "other.gguf");
    OKAY(onlay_model_open(path, strlen(path), &other, &error));
    WRONG(ONLAY_ARGUMENT, "number of tokens: NULL", onlay_model_tokenize(model, "x", 1, 0, NULL, 0, NULL, &error));
    WRONG(ONLAY_UNSUPPORTED, "template", onlay_model_render(other, "[]", 2, 0, NULL, 0, &n, NULL, 0, &n, &error));

    texts(model);
    serving(model);
    crowding(model);

    /* a session outlives the handle of its model */
    OKAY(onlay_session_new(again, NULL, &session, &error));
    onlay_model_free(again);
    OKAY(onlay_session_append_text(session, "land", 4, ONLAY_ADD_SPECIAL, &error));
    {
        onlay_generate_options o = generating(4, 0.8f);
        OKAY(onlay_session_generate(session, &o, NULL, NULL, NULL, &error));
    }
    onlay_session_free(session);
    onlay_model_free(other);
    onlay_model_free(model);
    if (!failed) printf("done\n");
    return failed;
}
