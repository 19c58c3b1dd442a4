/* Training, cancelling, resuming; putting layers on and taking them off; learning while serving. */
#include "checks.h"

/* ---- training --------------------------------------------------------------------------------------------------- */

static int exists(const char *path) {
    FILE *f = fopen(path, "rb");
    if (f) fclose(f);
    return f != NULL;
}

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
    CHECK(o.rank == 16 && o.shuffle == 1 && o.overwrite == 0 && o.checkpoint_seconds == 300.0);
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

typedef struct {
    const onlay_model *model;
    char output[1200];
    onlay_adapter *made;
    uint32_t polite;
    onlay_status status;
    volatile int steps;
} Lesson;

static int count(void *user, const onlay_progress *p) {
    if (p->phase == ONLAY_TRAIN_STEP) ((Lesson *)user)->steps++;
    return 0;
}

static void *teach(void *user) {
    Lesson *l = user;
    onlay_train_options o;
    onlay_train_options_init(&o, sizeof o, NULL);
    o.data = text(file(3, "train.jsonl"));
    o.output = text(l->output);
    o.rank = 4;
    o.max_steps = 6;
    o.batch_size = 2;
    o.learning_rate = 2e-2;
    o.seed = 3;
    o.threads = 2;
    o.polite = l->polite;
    o.context = 128;
    l->status = onlay_train(l->model, &o, count, l, &l->made, NULL, NULL);
    return NULL;
}

/* Serving and training at once, over one model: neither changes what the other computes. */
static void meanwhile(const onlay_model *model) {
    static Lesson alone, beside; /* zero */
    onlay_session *session = NULL;
    pthread_t teacher;
    uint32_t base[64], found[64];
    size_t n;
    int runs = 0;
    OKAY(onlay_session_new(model, NULL, &session, &error));
    n = run(session, base, 64);
    alone.model = beside.model = model;
    alone.polite = 1; /* which is no other result */
    strcpy(alone.output, file(1, "whole/meanwhile.gguf"));
    strcpy(beside.output, file(1, "parts/meanwhile.gguf"));
    teach(&alone);
    CHECK(pthread_create(&teacher, NULL, teach, &beside) == 0);
    while (runs < 3 || beside.steps < 6) {
        CHECK(run(session, found, 64) == n && memcmp(base, found, n * sizeof *base) == 0);
        if (++runs > 100000) break;
    }
    CHECK(pthread_join(teacher, NULL) == 0);
    CHECK(alone.status == ONLAY_OK && beside.status == ONLAY_OK);
    CHECK(same_files(alone.output, beside.output));
    OKAY(onlay_session_attach(session, beside.made, 1, &error));
    CHECK(run(session, found, 64) == n && memcmp(base, found, n * sizeof *base) != 0);
    onlay_adapter_free(alone.made);
    onlay_adapter_free(beside.made);
    onlay_session_free(session);
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

    /* another method, with numbers of its own; what it does not have is refused, all of it at once */
    o = training(file(1, "prefix.gguf"));
    o.method = text("prefix");
    o.rank = 16;
    o.layer_options = text("{\"virtual-tokens\": 4, \"colour\": 1, \"encoder\": \"x\"}");
    WRONG(ONLAY_ARGUMENT, "colour", onlay_train(model, &o, NULL, NULL, NULL, NULL, &error));
    o.layer_options = text("{\"virtual-tokens\": 4}");
    o.optimizer = text("adamw8bit");
    OKAY(onlay_train(model, &o, NULL, NULL, &foreign, NULL, &error));
    OKAY(onlay_session_truncate(session, 0, &error));
    OKAY(onlay_session_attach(session, foreign, 1, &error));
    m = run(session, learned, 64);
    CHECK(m == n && memcmp(base, learned, n * sizeof *base) != 0);
    OKAY(onlay_session_detach(session, foreign, &error));
    CHECK(run(session, found, 64) == n && memcmp(base, found, n * sizeof *base) == 0);
    onlay_adapter_free(foreign);
    foreign = NULL;

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
    o.overwrite = 1;
    o.output = o.data;
    WRONG(ONLAY_ARGUMENT, "is also the data", onlay_train(model, &o, NULL, NULL, NULL, NULL, &error));
    o.output = text(file(1, "model.gguf"));
    WRONG(ONLAY_ARGUMENT, "is also the base", onlay_train(model, &o, NULL, NULL, NULL, NULL, &error));
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
    const char *path;
    if (argc != 2) return 2;
    snprintf(folder, sizeof folder, "%s", argv[1]);
    path = file(0, "model.gguf");
    OKAY(onlay_model_open(path, strlen(path), &model, &error));
    OKAY(onlay_model_open(path, strlen(path), &again, &error));
    path = file(0, "other.gguf");
    OKAY(onlay_model_open(path, strlen(path), &other, &error));
    learning(model, again, other);
    meanwhile(model);
    onlay_model_free(other);
    onlay_model_free(again);
    onlay_model_free(model);
    if (!failed) printf("done\n");
    return failed;
}
