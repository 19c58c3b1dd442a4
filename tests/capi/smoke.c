/* A C program that does everything onlay.h offers, with a tiny model. tests/capi.rs makes the files it is given:
 *   smoke FOLDER      model.gguf, other.gguf (another model), unsigned.gguf (an adapter without a manifest),
 *                     train.jsonl, text.jsonl, bad.jsonl, and the folders whole and parts
 */
#include "onlay.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failed;

#define CHECK(what)                                                        \
    do {                                                                   \
        if (!(what)) {                                                     \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what);     \
            failed = 1;                                                    \
        }                                                                  \
    } while (0)

static onlay_error *error;

static void okay(onlay_status status, int line) {
    if (status != ONLAY_OK || error != NULL) {
        fprintf(stderr, "line %d: %s: %s\n", line, onlay_status_name(status), onlay_error_message(error));
        exit(1);
    }
}
#define OKAY(call) okay(call, __LINE__)

static void wrong(onlay_status found, onlay_status expected, const char *message, int line) {
    if (found != expected || onlay_error_status(error) != expected || !strstr(onlay_error_message(error), message)) {
        fprintf(stderr, "line %d: expected %s with \"%s\", found %s: %s\n", line, onlay_status_name(expected), message,
                onlay_status_name(found), onlay_error_message(error));
        failed = 1;
    }
    onlay_error_free(error);
    error = NULL;
}
/* The call fails like this, and says so without an error object too. */
#define WRONG(status, message, call) wrong(call, status, message, __LINE__)

static char folder[1024];
static char name_buffer[4][1200];

static const char *file(int slot, const char *name) {
    snprintf(name_buffer[slot], sizeof name_buffer[slot], "%s/%s", folder, name);
    return name_buffer[slot];
}

static onlay_text text(const char *s) {
    onlay_text t;
    t.data = s;
    t.len = strlen(s);
    return t;
}

static int exists(const char *path) {
    FILE *f = fopen(path, "rb");
    if (f) fclose(f);
    return f != NULL;
}

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

static onlay_generate_options generating(uint64_t tokens, float temperature) {
    onlay_generate_options o;
    OKAY(onlay_generate_options_init(&o, sizeof o, &error));
    o.max_tokens = tokens;
    o.temperature = temperature;
    o.seed = 7;
    o.raw = 1; /* a model of random weights ends anywhere */
    return o;
}

/* All tokens of the session after 24 generated from the prompt: 12 the likeliest, 12 drawn. */
static size_t run(onlay_session *session, uint32_t *tokens, size_t capacity) {
    static const char prompt[] = "the land and the ";
    onlay_generate_options greedy = generating(12, 0), drawn = generating(12, 1);
    size_t n = 0;
    OKAY(onlay_session_truncate(session, 0, &error));
    OKAY(onlay_session_append_text(session, prompt, strlen(prompt), ONLAY_ADD_SPECIAL, &error));
    OKAY(onlay_session_generate(session, &greedy, NULL, NULL, NULL, &error));
    OKAY(onlay_session_generate(session, &drawn, NULL, NULL, NULL, &error));
    OKAY(onlay_session_tokens(session, tokens, capacity, &n, &error));
    return n;
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
    CHECK(options.rows == 512 && options.kv == ONLAY_KV_F16 && options.adapter_rank == 64 && options.reserved == 0);
    options.context = 64;
    options.threads = 2;
    OKAY(onlay_session_plan(model, &options, &bytes, &error));
    options.context = 128;
    OKAY(onlay_session_plan(model, &options, &more, &error));
    CHECK(bytes > 1000 && more > bytes);
    options.context = 64;
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
    static const char more[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"land?\"}],\"variables\":{\"tone\":\"dry\"}}";
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
    OKAY(onlay_model_tokenize(model, said, strlen(said), ONLAY_ADD_SPECIAL | ONLAY_PARSE_SPECIAL, tokens, 128, &m, &error));
    CHECK(tokens[0] == 270 && tokens[m - 1] == 271 && m < n);
    OKAY(onlay_model_detokenize(model, tokens, 1, ONLAY_PARSE_SPECIAL, back, sizeof back, &len, &error));
    CHECK(len == strlen("<|begin_of_text|>"));
    OKAY(onlay_model_tokenize(model, NULL, 0, 0, tokens, 128, &m, &error));
    CHECK(m == 0);
    WRONG(ONLAY_ARGUMENT, "flags", onlay_model_tokenize(model, said, 3, 64, tokens, 128, &m, &error));

    OKAY(onlay_model_render(model, talk, strlen(talk), ONLAY_GENERATION_PROMPT, back, sizeof back, &len, tokens, 128, &n,
                            &error));
    CHECK(len == strlen("<|begin_of_text|>user: land?\nassistant: ") && tokens[0] == 270 && tokens[1] != 270);
    CHECK(memcmp(back + len - 11, "assistant: ", 11) == 0);
    OKAY(onlay_model_render(model, talk, strlen(talk), 0, NULL, 0, &m, NULL, 0, &n, &error));
    CHECK(m == len - 11);
    memset(back, 'x', sizeof back);
    WRONG(ONLAY_BUFFER, "tokens", onlay_model_render(model, talk, strlen(talk), 0, back, sizeof back, &m, tokens, 2, &n, &error));
    CHECK(m == len - 11 && n > 2 && back[0] == 'x');
    OKAY(onlay_model_render(model, more, strlen(more), 0, back, sizeof back, &m, NULL, 0, &n, &error));
    CHECK(m > 4 && memcmp(back, "<|begin_of_text|>(dry)", 22) == 0);
    WRONG(ONLAY_DATA, "JSON", onlay_model_render(model, talk, 5, 0, NULL, 0, &m, NULL, 0, &n, &error));
    WRONG(ONLAY_DATA, "role", onlay_model_render(model, "[{}]", 4, 0, NULL, 0, &m, NULL, 0, &n, &error));
    WRONG(ONLAY_TEMPLATE, "nobody", onlay_model_render(model, "[]", 2, 0, NULL, 0, &m, NULL, 0, &n, &error));
}

/* ---- training --------------------------------------------------------------------------------------------------- */

typedef struct {
    int calls[8];
    uint64_t first_step, last_step, cancel_at;
    double loss;
    int cancel_phase;
} Seen;

static int watch(void *user, const onlay_progress *p) {
    Seen *s = user;
    CHECK(p->struct_size == sizeof *p && p->phase >= 1 && p->phase <= 6);
    s->calls[p->phase]++;
    if (p->phase == ONLAY_TRAIN_STARTED) {
        s->first_step = p->step;
        CHECK(p->planned_bytes > 1000 && isnan(p->loss));
    }
    if (p->phase == ONLAY_TRAIN_STEP) {
        CHECK(p->steps == 6 && p->step == s->first_step + (uint64_t)s->calls[ONLAY_TRAIN_STEP]);
        CHECK(p->loss > 0 && p->lr > 0 && p->grad_norm > 0 && p->tokens > 0);
        CHECK(p->tokens_per_second > 0 && p->seconds_left >= 0);
        s->last_step = p->step;
        s->loss = p->loss;
        if (p->step == s->cancel_at) return 1;
    }
    if (p->phase == ONLAY_TRAIN_EVALUATED) CHECK(p->eval_loss > 0);
    return (int)p->phase == s->cancel_phase;
}

static onlay_train_options training(const char *output) {
    onlay_train_options o;
    OKAY(onlay_train_options_init(&o, sizeof o, &error));
    CHECK(o.rank == 16 && o.shuffle == 1 && o.overwrite == 0 && o.checkpoint_seconds == 600.0);
    o.data = text(file(0, "train.jsonl"));
    o.output = text(output);
    o.rank = 4;
    o.max_steps = 6;
    o.batch_size = 2;
    o.learning_rate = 2e-2;
    o.eval_split = 0.25;
    o.seed = 3;
    o.threads = 2;
    o.context = 128;
    return o;
}

static int same_files(const char *a, const char *b) {
    FILE *f = fopen(a, "rb"), *g = fopen(b, "rb");
    int c = 0, d = 0;
    if (f && g) do { c = fgetc(f); d = fgetc(g); } while (c == d && c != EOF);
    else c = 1;
    if (f) fclose(f);
    if (g) fclose(g);
    return c == d;
}

static void learning(const onlay_model *model, const onlay_model *again, const onlay_model *other) {
    char whole[1200], parts[1200], checkpoint[1300], message[200];
    onlay_session_options options;
    onlay_session *session = NULL;
    onlay_adapter *made = NULL, *opened = NULL, *foreign = NULL;
    onlay_train_options o;
    onlay_trained result, first;
    Seen seen;
    uint32_t base[64], found[64], learned[64];
    size_t n, m, len;
    const char *path;

    strcpy(whole, file(1, "whole/layer.gguf")); /* its name is in the file */
    strcpy(parts, file(1, "parts/layer.gguf"));
    snprintf(checkpoint, sizeof checkpoint, "%s.checkpoint", parts);

    /* a session that lives through all of it */
    OKAY(onlay_session_options_init(&options, sizeof options, &error));
    options.context = 64;
    options.threads = 2;
    options.adapter_rank = 8;
    OKAY(onlay_session_new(model, &options, &session, &error));
    n = run(session, base, 64);

    /* one run from beginning to end */
    memset(&seen, 0, sizeof seen);
    memset(&result, 0, sizeof result);
    result.struct_size = sizeof result;
    o = training(whole);
    OKAY(onlay_train(model, &o, watch, &seen, &made, &result, &error));
    CHECK(made != NULL && exists(whole));
    CHECK(seen.calls[ONLAY_TRAIN_STARTED] == 1 && seen.calls[ONLAY_TRAIN_STEP] == 6 && seen.first_step == 0);
    CHECK(seen.calls[ONLAY_TRAIN_EVALUATED] == 2 && seen.calls[ONLAY_TRAIN_ENCODING] >= 1);
    CHECK(result.steps == 6 && result.last_loss == seen.loss && result.last_loss < result.first_loss);
    CHECK(result.eval_after < result.eval_before && result.seconds > 0);
    first = result;
    snprintf(checkpoint, sizeof checkpoint, "%s.checkpoint", whole);
    CHECK(!exists(checkpoint));

    /* one that is cancelled, refused, and resumed: the same file */
    snprintf(checkpoint, sizeof checkpoint, "%s.checkpoint", parts);
    memset(&seen, 0, sizeof seen);
    seen.cancel_at = 2;
    o = training(parts);
    WRONG(ONLAY_CANCELLED, "after step 2 of 6", onlay_train(model, &o, watch, &seen, &opened, NULL, &error));
    CHECK(seen.last_step == 2 && opened == NULL && exists(checkpoint) && !exists(parts));
    WRONG(ONLAY_ARGUMENT, "at step 2", onlay_train(model, &o, NULL, NULL, NULL, NULL, &error));
    o.start = ONLAY_START_RESUME;
    o.seed = 4;
    WRONG(ONLAY_MISMATCH, "seed", onlay_train(model, &o, NULL, NULL, NULL, NULL, &error));
    o.seed = 3;
    memset(&seen, 0, sizeof seen);
    OKAY(onlay_train(model, &o, watch, &seen, NULL, NULL, &error));
    CHECK(seen.first_step == 2 && seen.calls[ONLAY_TRAIN_STEP] == 4 && !exists(checkpoint));
    CHECK(same_files(whole, parts));

    /* cancelled while rows are encoded: nothing to save */
    memset(&seen, 0, sizeof seen);
    seen.cancel_phase = ONLAY_TRAIN_ENCODING;
    o = training(file(1, "never.gguf"));
    WRONG(ONLAY_CANCELLED, "encoded", onlay_train(model, &o, watch, &seen, NULL, NULL, &error));

    /* what the layer does, and that it goes away */
    OKAY(onlay_session_attach(session, made, 1, &error));
    OKAY(onlay_session_attach(session, made, 1, &error));
    m = run(session, learned, 64);
    CHECK(m == n && memcmp(base, learned, n * sizeof *base) != 0);
    OKAY(onlay_session_detach(session, made, &error));
    CHECK(run(session, found, 64) == n && memcmp(base, found, n * sizeof *base) == 0);
    WRONG(ONLAY_ARGUMENT, "not attached", onlay_session_detach(session, made, &error));

    /* the file is the same layer */
    OKAY(onlay_adapter_open(model, parts, strlen(parts), ONLAY_REFUSE_WARNINGS, &opened, &error));
    OKAY(onlay_adapter_warnings(opened, NULL, 0, &len, &error));
    CHECK(len == 0);
    OKAY(onlay_session_attach(session, opened, 1, &error));
    CHECK(run(session, found, 64) == n && memcmp(learned, found, n * sizeof *base) == 0);
    OKAY(onlay_session_attach(session, opened, 0, &error)); /* a scale of 0 takes it off */
    CHECK(run(session, found, 64) == n && memcmp(base, found, n * sizeof *base) == 0);

    /* two at once, an adapter freed while it is on, all taken off in the middle of a text */
    OKAY(onlay_session_attach(session, opened, 0.5f, &error));
    OKAY(onlay_session_attach(session, made, -0.5f, &error));
    onlay_adapter_free(opened);
    onlay_adapter_free(made);
    run(session, found, 64);
    OKAY(onlay_session_detach(session, NULL, &error));
    CHECK(run(session, found, 64) == n && memcmp(base, found, n * sizeof *base) == 0);

    /* adapters that do not belong */
    opened = NULL;
    OKAY(onlay_adapter_open(again, parts, strlen(parts), 0, &opened, &error));
    WRONG(ONLAY_MISMATCH, "another model", onlay_session_attach(session, opened, 1, &error));
    onlay_adapter_free(opened);
    o = training(file(1, "foreign.gguf"));
    o.data = text(file(2, "text.jsonl"));
    OKAY(onlay_train(other, &o, NULL, NULL, NULL, NULL, &error));
    WRONG(ONLAY_MISMATCH, "onlay.base.shape",
          onlay_adapter_open(model, o.output.data, o.output.len, 0, &foreign, &error));
    CHECK(foreign == NULL);
    path = file(2, "nothing-here.gguf");
    WRONG(ONLAY_IO, "nothing-here.gguf", onlay_adapter_open(model, path, strlen(path), 0, &foreign, &error));

    /* one that says nothing about its base, and whose shapes happen to fit */
    path = file(2, "unsigned.gguf");
    WRONG(ONLAY_MISMATCH, "does not say",
          onlay_adapter_open(model, path, strlen(path), ONLAY_REFUSE_WARNINGS, &foreign, &error));
    OKAY(onlay_adapter_open(model, path, strlen(path), 0, &foreign, &error));
    OKAY(onlay_adapter_warnings(foreign, message, sizeof message, &len, &error));
    CHECK(len > 20 && memcmp(message, "the adapter does not say", 24) == 0);
    onlay_adapter_free(foreign);

    /* more rank than the session has room for */
    o = training(file(1, "wide.gguf"));
    o.rank = 9;
    o.max_steps = 6;
    o.checkpoint_seconds = 0;
    OKAY(onlay_train(model, &o, NULL, NULL, &made, NULL, &error));
    WRONG(ONLAY_ARGUMENT, "adapter_rank", onlay_session_attach(session, made, 1, &error));
    CHECK(run(session, found, 64) == n && memcmp(base, found, n * sizeof *base) == 0);
    onlay_adapter_free(made);

    /* going on from a layer */
    o = training(file(1, "further.gguf"));
    o.init_adapter = text(whole);
    memset(&seen, 0, sizeof seen);
    OKAY(onlay_train(model, &o, watch, &seen, NULL, &result, &error));
    CHECK(result.steps == 6 && result.eval_before < first.eval_before);

    /* runs that cannot begin */
    o = training(whole);
    WRONG(ONLAY_ARGUMENT, "exists already", onlay_train(model, &o, NULL, NULL, NULL, NULL, &error));
    o = training(file(1, "no/such/folder.gguf"));
    WRONG(ONLAY_IO, "directory", onlay_train(model, &o, NULL, NULL, NULL, NULL, &error));
    o = training(file(1, "x.gguf"));
    o.data = text(file(2, "bad.jsonl"));
    WRONG(ONLAY_DATA, "line 2", onlay_train(model, &o, NULL, NULL, NULL, NULL, &error));
    o = training(file(1, "x.gguf"));
    o.targets = text("q,nose");
    WRONG(ONLAY_ARGUMENT, "nose", onlay_train(model, &o, NULL, NULL, NULL, NULL, &error));
    o.targets = text("q");
    o.batch_size = 0;
    WRONG(ONLAY_ARGUMENT, "batch_size", onlay_train(model, &o, NULL, NULL, NULL, NULL, &error));
    WRONG(ONLAY_ARGUMENT, "output", onlay_train(model, NULL, NULL, NULL, NULL, NULL, &error));
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
    learning(model, again, other);

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
    if (!failed) printf("smoke: done\n");
    return failed;
}
