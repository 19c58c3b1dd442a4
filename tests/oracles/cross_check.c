/* Logits of llama.cpp for one sequence of token ids, every position, in f32.
 *
 *     cross_check MODEL.gguf TOKENS.i32 LOGITS.f32 [ADAPTER.gguf]
 *
 * F32 cache, no flash attention, one thread: the most exact way llama.cpp has on a CPU. Built and called by cross_check.py. */
#include "llama.h"
#include <stdio.h>
#include <stdlib.h>

static void quiet(enum ggml_log_level level, const char *text, void *data) {
    (void) data;
    if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

static void need(int ok, const char *what) {
    if (!ok) { fprintf(stderr, "cross_check: %s\n", what); exit(1); }
}

int main(int argc, char **argv) {
    need(argc == 4 || argc == 5, "usage: MODEL TOKENS LOGITS [ADAPTER]");
    llama_log_set(quiet, NULL);
    llama_token tokens[4096];
    FILE *in = fopen(argv[2], "rb");
    need(in != NULL, "no tokens");
    int n = (int) fread(tokens, sizeof *tokens, 4096, in);
    fclose(in);

    struct llama_model_params with = llama_model_default_params();
    with.use_extra_bufts = false; /* no repacked weights */
    struct llama_model *model = llama_model_load_from_file(argv[1], with);
    need(model != NULL, "model refused");

    struct llama_context_params how = llama_context_default_params();
    how.n_ctx = how.n_batch = how.n_ubatch = 256;
    how.n_threads = how.n_threads_batch = 1;
    how.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    how.type_k = how.type_v = GGML_TYPE_F32;
    struct llama_context *context = llama_init_from_model(model, how);
    need(context != NULL, "no context");
    if (argc == 5) {
        struct llama_adapter_lora *adapter = llama_adapter_lora_init(model, argv[4]);
        float scale = 1.0f;
        need(adapter != NULL && llama_set_adapters_lora(context, &adapter, 1, &scale) == 0, "adapter refused");
    }

    struct llama_batch batch = llama_batch_init(n, 0, 1);
    batch.n_tokens = n;
    for (int i = 0; i < n; i++) {
        batch.token[i] = tokens[i];
        batch.pos[i] = i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = 1;
    }
    need(llama_decode(context, batch) == 0, "decode failed");
    int vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    FILE *out = fopen(argv[3], "wb");
    need(out != NULL, "cannot write logits");
    for (int i = 0; i < n; i++)
        need(fwrite(llama_get_logits_ith(context, i), sizeof(float), vocab, out) == (size_t) vocab, "short write");
    need(fclose(out) == 0, "short write");
    return 0;
}
