/* What the C programs of the tests share. Each is given a folder in which tests/capi.rs has put
 *                     model.gguf, other.gguf (another model), unsigned.gguf (an adapter without a manifest),
 *                     train.jsonl, text.jsonl, bad.jsonl, and the folders whole and parts
 */
#ifndef CHECKS_H
#define CHECKS_H

#include "onlay.h"
#include <math.h>
#include <pthread.h>
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
/* The call fails like this. */
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

#endif
