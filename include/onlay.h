/*
 * onlay.h - Onlay from C: serve a GGUF model, train layers over it, put them on and take them off, in one process.
 *
 * This header is the law: what it promises is tested (tests/capi.rs), and what it does not promise may change.
 *
 * BUILDING AND LINKING
 *   cargo build --release --features capi --no-default-features
 *   cc app.c -Iinclude target/release/libonlay.a -lgcc_s -lutil -lrt -lpthread -lm -ldl -lc      (static, Linux)
 *   cc app.c -Iinclude -Ltarget/release -lonlay                                                  (shared)
 *   The list of system libraries is that of `cargo rustc --crate-type staticlib -- --print native-static-libs`.
 *   The shared library exports onlay_* and nothing else. The static one also has rust_eh_personality: a program that
 *   links a second static library made by another Rust toolchain must hide it (docs/c.md has the three commands).
 *
 * RESULTS AND ERRORS
 *   Every call that can fail returns an onlay_status and takes an `onlay_error **error` as its last argument. There
 *   is no last error, and no other state outside the handles. `error` may be NULL. Otherwise *error is always
 *   written: NULL after success, after failure a new error that the caller frees with onlay_error_free, on any
 *   thread. What *error held before is overwritten, not freed. After a failure outputs are as they were, except that
 *   a handle to be created is NULL; where a call changes a session or a file before it fails, it says below what
 *   remains.
 *   Nothing here prints, exits, aborts, installs handlers or reads the environment (but for ONLAY_LEVEL, which forces
 *   a lower instruction set).
 *   A defect of the library is caught at this boundary and becomes ONLAY_PANIC; Rust's runtime then writes a line to
 *   stderr, unless the host is itself Rust and has told it otherwise. Memory that was planned and is not there is
 *   ONLAY_MEMORY; a small allocation that the system refuses ends the process, as in all Rust code.
 *
 * STRINGS AND ARRAYS
 *   In: a pointer and a length, not terminated; NULL with length 0 is empty. Text is UTF-8; paths are UTF-8, on Unix
 *   any bytes. The library keeps no pointer after the call returns.
 *   Out: the caller's buffer, its capacity, and where to write how many elements there are. That pointer must not be
 *   NULL, and the number is written even if they do not fit: if there are more than the capacity, nothing is written
 *   to the buffer; the call returns ONLAY_BUFFER and may be repeated with a larger one. A NULL buffer with capacity 0
 *   asks for the number alone and succeeds. Text that comes out is not terminated; the one exception is the text of
 *   errors, statuses and the version.
 *
 * STRUCTS
 *   Every struct begins with struct_size. Fill option structs with their _init, passing sizeof, and change what
 *   should differ; NULL means all defaults. Later versions only append fields: a program compiled against an older
 *   header gets the defaults for those it does not know, and one compiled against a newer header is refused
 *   (ONLAY_UNSUPPORTED) only if it sets a field that this library does not know.
 *   For structs that come out, set struct_size before the call; that many bytes are written at most.
 *
 * HANDLES AND THREADS
 *   A handle is made by one call and freed by its _free, once, from any thread; freeing NULL does nothing. Handles
 *   hold what they need: a model may be freed before its sessions and adapters, an adapter before the sessions that
 *   it is attached to; memory goes with the last.
 *   A handle may be freed while a call uses it, if that call is known to have begun (inside its callback, for
 *   instance).
 *   Models and adapters never change: use them from any number of threads at once.
 *   A session is used by one thread at a time, not always the same one; a call on a session that is in another call
 *   (on another thread, or around the callback that makes it) does nothing and returns ONLAY_BUSY. Sessions work
 *   beside each other and beside training.
 *
 * CALLBACKS
 *   Run on the thread that made the call, before it returns. They must not unwind: if a C++ exception or a longjmp
 *   leaves one, the behaviour is undefined. They may call anything here, except on the session they are called for.
 */
#ifndef ONLAY_H
#define ONLAY_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Version ---------------------------------------------------------------------------------------------------- */

/* The interface of this header. Raised when a program made for the older one could no longer run; additions do not. */
#define ONLAY_ABI_VERSION 1

/* The interface of the library at hand; compare it with ONLAY_ABI_VERSION if it is loaded at run time. */
uint32_t onlay_abi_version(void);

/* The version of the library, "1.2.3". Static, terminated. */
const char *onlay_version(void);

/* ---- Status and errors ------------------------------------------------------------------------------------------ */

typedef int32_t onlay_status;

/* Numbers never change their meaning; new ones may come. */
enum {
    ONLAY_OK = 0,
    ONLAY_IO = 1,          /* the operating system refused: open, read, write, flush, rename, map */
    ONLAY_FORMAT = 2,      /* bytes that are not what their format says */
    ONLAY_UNSUPPORTED = 3, /* well-formed, but something this version does not do */
    ONLAY_MISMATCH = 4,    /* two things that do not belong together: an adapter and another base */
    ONLAY_ARGUMENT = 5,    /* an argument or option outside its range; NULL where something is needed */
    ONLAY_DATA = 6,        /* rows of a data file that cannot be used; all of them are listed, with their lines */
    ONLAY_MEMORY = 7,      /* more memory than the system gives, or than was planned */
    ONLAY_CANCELLED = 8,   /* a callback asked to stop */
    ONLAY_NUMERIC = 9,     /* NaN or infinity in logits, a loss, a gradient, an adapter */
    ONLAY_TEMPLATE = 10,   /* the chat template does not parse, or refuses the messages */
    ONLAY_INTERNAL = 11,   /* a defect of the library; please report it */
    ONLAY_DEVICE = 12,     /* a device or its driver: absent, too old, or lost */
    ONLAY_PANIC = 100,     /* a worse one: the call broke off; its session can only be freed */
    ONLAY_BUSY = 101,      /* the session is in another call */
    ONLAY_BUFFER = 102     /* the caller's buffer is too small; the needed length was written */
};

/* The lower-case name of a status, "mismatch"; "unknown" for other numbers. Static, terminated. */
const char *onlay_status_name(onlay_status status);

typedef struct onlay_error onlay_error;

/* The status that came with the error; ONLAY_OK for NULL. */
onlay_status onlay_error_status(const onlay_error *error);

/* What was expected and found, and where, for people; several lines if several things are wrong. UTF-8, terminated,
 * valid until the error is freed; "" for NULL. */
const char *onlay_error_message(const onlay_error *error);

void onlay_error_free(onlay_error *error);

/* ---- Text in structs -------------------------------------------------------------------------------------------- */

/* Bytes of the caller, not terminated; {NULL, 0} is empty. */
typedef struct onlay_text {
    const char *data;
    size_t len;
} onlay_text;

/* ---- Models ----------------------------------------------------------------------------------------------------- */

typedef struct onlay_model onlay_model;

/* Maps a GGUF file (of a split model: its first file). The weights stay in the file and are shared by everything that
 * is made from the handle; the file must not be written to or truncated meanwhile. */
onlay_status onlay_model_open(const char *path, size_t path_len, onlay_model **model, onlay_error **error);

void onlay_model_free(onlay_model *model);

typedef struct onlay_model_info {
    size_t struct_size;
    uint64_t vocabulary;    /* tokens have ids below this */
    uint64_t context;       /* positions it was trained for */
    int64_t bos;            /* the token that begins a text; -1: none */
    int64_t eos;            /* the token that ends a text; -1: none */
    uint32_t has_tokenizer; /* 1: text can go in and come out */
    uint32_t has_template;  /* 1: messages can be rendered */
} onlay_model_info;

onlay_status onlay_model_info_get(const onlay_model *model, onlay_model_info *info, onlay_error **error);

/* Flags of onlay_model_tokenize, onlay_model_detokenize and onlay_session_append_text. */
enum {
    ONLAY_ADD_SPECIAL = 1,  /* encoding adds the tokens that begin and end a text, by the model's own rules */
    ONLAY_PARSE_SPECIAL = 2 /* encoding: control tokens spelled out in the text become those tokens;
                               decoding: control tokens are spelled out, not left out */
};

/* The tokens of a text. Any bytes are taken, as they are. */
onlay_status onlay_model_tokenize(const onlay_model *model, const char *text, size_t text_len, uint32_t flags,
                                  uint32_t *tokens, size_t tokens_capacity, size_t *tokens_len, onlay_error **error);

/* The bytes that tokens stand for. They are UTF-8 as far as the tokens are whole characters. */
onlay_status onlay_model_detokenize(const onlay_model *model, const uint32_t *tokens, size_t tokens_len,
                                    uint32_t flags, char *text, size_t text_capacity, size_t *text_len,
                                    onlay_error **error);

/* Flags of onlay_model_render. */
enum {
    ONLAY_GENERATION_PROMPT = 1 /* end where the assistant's next words begin */
};

/* Writes messages in the words of the model's own chat template, the one that training uses. `messages` is JSON: a
 * list of {"role", "content", ...}, or an object with "messages", and optionally "tools" and "variables" (further
 * names for the template, such as enable_thinking). Text and tokens both come out; either buffer may be left out
 * (NULL, 0). The tokens are complete: append them as they are. */
onlay_status onlay_model_render(const onlay_model *model, const char *messages, size_t messages_len, uint32_t flags,
                                char *text, size_t text_capacity, size_t *text_len,
                                uint32_t *tokens, size_t tokens_capacity, size_t *tokens_len, onlay_error **error);

/* ---- Sessions --------------------------------------------------------------------------------------------------- */

/* One conversation: its tokens, its cached keys and values, what is attached to it, and threads of its own that sleep
 * between calls. */
typedef struct onlay_session onlay_session;

/* How keys and values are rounded. Training and serving should agree. */
enum { ONLAY_KV_F32 = 1, ONLAY_KV_F16 = 2, ONLAY_KV_Q8_0 = 3 };

typedef struct onlay_session_options {
    size_t struct_size;
    uint64_t context;      /* most tokens; 0 (default): 2048, or what the model was trained for if that is less */
    uint64_t rows;         /* tokens of a prompt computed at a time; default 512 */
    uint32_t threads;      /* the calling one included unless polite; 0 (default): as many as there are cores, up to 16 */
    int32_t kv;            /* default ONLAY_KV_F16 */
    uint32_t adapter_rank; /* room for adapters: their ranks together (of LoHa their squares), 64 virtual tokens; default 64 */
    uint32_t polite;       /* 1: its threads have the lowest priority (where the system is Linux or Apple's) and never */
                           /* spin, and the calling one does only what is too little to divide; default 0 */
    onlay_text device;     /* "cpu" (default), or an NVIDIA GPU such as "cuda:0", which wears LoRA only */
    uint64_t gpu_memory;   /* the most bytes of it that may be taken; 0 (default): seven eighths of what is free */
} onlay_session_options;

onlay_status onlay_session_options_init(onlay_session_options *options, size_t struct_size, onlay_error **error);

/* The bytes that onlay_session_new would allocate besides the mapped file. Allocates nothing. */
onlay_status onlay_session_plan(const onlay_model *model, const onlay_session_options *options, uint64_t *bytes,
                                onlay_error **error);

/* Allocates what the plan says. Generating asks for no memory for keys, values or activations afterwards. */
onlay_status onlay_session_new(const onlay_model *model, const onlay_session_options *options,
                               onlay_session **session, onlay_error **error);

void onlay_session_free(onlay_session *session);

/* Appends to what was said; it is computed when tokens are generated. ONLAY_ARGUMENT if the context would overflow or
 * a token does not exist; nothing is appended then. */
onlay_status onlay_session_append_tokens(onlay_session *session, const uint32_t *tokens, size_t tokens_len,
                                         onlay_error **error);
onlay_status onlay_session_append_text(onlay_session *session, const char *text, size_t text_len, uint32_t flags,
                                       onlay_error **error);

/* Everything said so far, by whomever. */
onlay_status onlay_session_tokens(onlay_session *session, uint32_t *tokens, size_t tokens_capacity,
                                  size_t *tokens_len, onlay_error **error);

/* Forgets all but the first `len` tokens; 0 begins anew. A `len` beyond what there is changes nothing. */
onlay_status onlay_session_truncate(onlay_session *session, size_t len, onlay_error **error);

/* ---- Generating ------------------------------------------------------------------------------------------------- */

typedef struct onlay_generate_options {
    size_t struct_size;
    uint64_t max_tokens;    /* 0 (default): until the model or the context ends it */
    float temperature;      /* default 0.8; 0: always the likeliest token, and no draws */
    float top_p;            /* default 0.95; 1: off */
    float min_p;            /* default 0.05; 0: off */
    float repeat_penalty;   /* default 1: off */
    uint64_t top_k;         /* default 40; 0: off */
    uint64_t repeat_window; /* tokens that the penalty looks back, up to 1024; default 64 */
    uint64_t seed;          /* of the draws of this call; the same seed draws the same; default 0 */
    const onlay_text *stop; /* strings that end the text and are not part of it; default none */
    size_t stop_len;        /* how many, up to 1024 */
    uint32_t raw;           /* 1: control tokens are spelled out and end tokens do not end it; default 0 */
    uint32_t reserved;      /* 0 */
} onlay_generate_options;

onlay_status onlay_generate_options_init(onlay_generate_options *options, size_t struct_size, onlay_error **error);

/* Why generating ended. */
enum {
    ONLAY_END_MODEL = 1,   /* the model: an end-of-turn or end-of-text token */
    ONLAY_END_STOP = 2,    /* a stop string */
    ONLAY_END_LENGTH = 3,  /* max_tokens */
    ONLAY_END_CONTEXT = 4, /* the session is full */
    ONLAY_END_CALLER = 5   /* the callback */
};

typedef struct onlay_generated {
    size_t struct_size;
    uint64_t tokens; /* generated by this call, with the one that ended it */
    int32_t end;     /* ONLAY_END_... */
    uint32_t reserved;
} onlay_generated;

/* Takes the next piece of text: whole UTF-8 characters, not terminated, valid until it returns. A piece may stand for
 * several tokens, and a token for none. Nonzero ends generating. */
typedef int (*onlay_text_callback)(void *user, const char *text, size_t text_len);

/* Computes what was appended and generates from there. `callback` and `result` may be NULL. What was generated belongs
 * to the session, the token that ended it too; stopping by the callback is success with ONLAY_END_CALLER.
 * After an error the session holds the tokens generated so far and can go on. */
onlay_status onlay_session_generate(onlay_session *session, const onlay_generate_options *options,
                                    onlay_text_callback callback, void *user, onlay_generated *result,
                                    onlay_error **error);

/* ---- Adapters --------------------------------------------------------------------------------------------------- */

typedef struct onlay_adapter onlay_adapter;

/* Flags of onlay_adapter_open. */
enum {
    ONLAY_REFUSE_WARNINGS = 1 /* what would be a warning is ONLAY_MISMATCH */
};

/* Opens a GGUF adapter or a PEFT directory over a model, and reads it whole. ONLAY_MISMATCH, listing everything, if it
 * was made for another base. */
onlay_status onlay_adapter_open(const onlay_model *model, const char *path, size_t path_len, uint32_t flags,
                                onlay_adapter **adapter, onlay_error **error);

void onlay_adapter_free(onlay_adapter *adapter);

/* What is fine but worth saying, a line each: trained on another quantization of the base, with another template, ...
 * Empty if there is nothing. */
onlay_status onlay_adapter_warnings(const onlay_adapter *adapter, char *text, size_t text_capacity, size_t *text_len,
                                    onlay_error **error);

/* Puts an adapter on, beside those that are on; one that is on already gets the new scale. 1 is as it was trained, 0
 * takes it off. What the session has said will be computed again with it. ONLAY_MISMATCH for an adapter opened over
 * another onlay_model than the session's; ONLAY_ARGUMENT if the session has no room for its rank. */
onlay_status onlay_session_attach(onlay_session *session, const onlay_adapter *adapter, float scale,
                                  onlay_error **error);

/* Takes an adapter off; NULL: all. ONLAY_ARGUMENT if it is not on. With none on, every output is bit for bit the
 * base's. */
onlay_status onlay_session_detach(onlay_session *session, const onlay_adapter *adapter, onlay_error **error);

/* ---- Training --------------------------------------------------------------------------------------------------- */

/* The learning rate after the warm-up. */
enum { ONLAY_SCHEDULE_CONSTANT = 1, ONLAY_SCHEDULE_LINEAR = 2, ONLAY_SCHEDULE_COSINE = 3 };

/* What to do about the checkpoint of an earlier run beside the output. */
enum {
    ONLAY_START_NEW = 1,    /* refuse (ONLAY_ARGUMENT) */
    ONLAY_START_RESUME = 2, /* go on from it, or begin if there is none; its numbers are those of a run never stopped */
    ONLAY_START_OVER = 3    /* remove it and begin */
};

typedef struct onlay_train_options {
    size_t struct_size;
    onlay_text data;              /* the data file: JSON lines, JSON, or a .txt document; needed */
    onlay_text data_format;       /* text, completion, messages, conversations, instruction, tokens, */
                                  /* preference, feedback; default: what the rows look like */
    onlay_text eval_data;         /* evaluated before the first step and after the last; default none */
    onlay_text output;            /* the adapter to write, GGUF; checkpoints lie beside it; needed */
    onlay_text init_adapter;      /* an adapter to go on learning, in place of rank, alpha and targets; default none */
    onlay_text targets;           /* "all", "attn", "mlp", or names between commas: "q,v"; default the method's */
    uint64_t rank;                /* default 16 */
    double alpha;                 /* the layer's scale is alpha/rank; 0 (default): twice the rank */
    double dropout;               /* default 0 */
    double learning_rate;         /* 0 (default): the method's, from 5e-4 (2000/width)^0.781; less for judged rows */
    double weight_decay;          /* default 0 */
    double max_grad_norm;         /* default 1; 0: off */
    double epochs;                /* default 3 */
    uint64_t max_steps;           /* above 0 it counts in place of epochs; default 0 */
    uint64_t warmup_steps;        /* default 0 */
    uint64_t batch_size;          /* rows of a step; default 8 */
    uint64_t grad_accumulation;   /* steps have so many batches; default 1 */
    uint64_t context;             /* longest row; 0 (default): 1024, or what the model was trained for if less */
    uint64_t seed;                /* of the layer's start, the order of rows, dropout and eval_split; default 0 */
    double eval_split;            /* share of the rows that is only evaluated; default 0; not with eval_data */
    uint64_t eval_every;          /* steps between evaluations; 0 (default): only first and last */
    uint64_t checkpoint_every;    /* steps between checkpoints; 0 (default): by time alone */
    double checkpoint_seconds;    /* time between checkpoints; default 300; 0: off. A run that stops writes one */
    uint32_t threads;             /* as in onlay_session_options */
    int32_t kv;                   /* as in onlay_session_options */
    int32_t schedule;             /* default ONLAY_SCHEDULE_COSINE */
    int32_t start;                /* default ONLAY_START_NEW */
    uint32_t shuffle;             /* 1 (default): another order in every epoch */
    uint32_t pack;                /* 1 (default): short rows are computed together, each for itself */
    uint32_t truncate;            /* 1: rows longer than the context lose their end; 0 (default): they are refused */
    uint32_t overwrite;           /* 1: the output may replace a file; 0 (default): refused before the first step */
    onlay_text objective;         /* sft, dpo, ipo, orpo, simpo, kto; default: what the rows are for */
    double beta;                  /* numbers of the objective; NaN (default): its own. One that it does not take is */
    double label_smoothing;       /* refused */
    double simpo_gamma;
    double desirable_weight;
    double undesirable_weight;
    onlay_text method;            /* as onlay train --method says: lora (default), dora, prefix, hft and so on */
    onlay_text layer_options;     /* what else a method has: a JSON object by the names of onlay train's flags, */
                                  /* with members such as "virtual-tokens": 20, "tokens": [5, 9], "scale": "learned" */
    onlay_text optimizer;         /* adamw (default) or adamw8bit */
    onlay_text device;            /* as in onlay_session_options */
    uint64_t gpu_memory;          /* as in onlay_session_options */
    uint32_t polite;              /* as in onlay_session_options */
    uint32_t reserved;            /* 0 */
} onlay_train_options;

onlay_status onlay_train_options_init(onlay_train_options *options, size_t struct_size, onlay_error **error);

/* What a progress callback is told. */
enum {
    ONLAY_TRAIN_ENCODING = 1,    /* rows become tokens: step of steps are rows here */
    ONLAY_TRAIN_STARTED = 2,     /* planned and allocated; step is above 0 in a run that is resumed */
    ONLAY_TRAIN_STEP = 3,        /* a step was taken */
    ONLAY_TRAIN_EVALUATING = 4,  /* evaluation rows are being computed */
    ONLAY_TRAIN_EVALUATED = 5,   /* eval_loss is new */
    ONLAY_TRAIN_CHECKPOINTED = 6 /* a checkpoint is on the disk */
};

/* Numbers not known yet are NaN, or 0 where they are integers; those that are known stay. */
typedef struct onlay_progress {
    size_t struct_size;       /* of the library's own struct */
    uint64_t step;            /* steps taken */
    uint64_t steps;           /* of the whole run */
    uint64_t tokens;          /* that were learned from in the last step */
    double loss;              /* of the last step, mean per token, before its update */
    double lr;                /* learning rate of the last step */
    double grad_norm;         /* of the last step, before clipping */
    double eval_loss;         /* of the last evaluation */
    double tokens_per_second; /* computed, over all steps of this call */
    double seconds_left;      /* at that speed */
    uint64_t planned_bytes;   /* memory of the run besides the mapped file and the rows */
    uint64_t peak_bytes;      /* most memory the process has used; 0 where the system does not tell */
    uint32_t phase;           /* ONLAY_TRAIN_... */
    uint32_t reserved;
    double margin;            /* of judged rows in the last step: mean reward of the better less that of the worse */
    double accuracy;          /* share of them on the right side */
    double eval_accuracy;     /* the same in the last evaluation */
} onlay_progress;

/* Nonzero cancels. */
typedef int (*onlay_progress_callback)(void *user, const onlay_progress *progress);

typedef struct onlay_trained {
    size_t struct_size;
    uint64_t steps;
    double first_loss; /* of the first step, before its update */
    double last_loss;
    double eval_before; /* NaN without evaluation */
    double eval_after;
    double seconds; /* of this call */
    uint64_t peak_bytes;
} onlay_trained;

/* Trains a layer, writes it to options->output as a whole or not at all, and removes the checkpoints. What the run
 * reads, the base and the data, is refused as output. The model, and sessions over it, can be used meanwhile.
 * `callback`, `adapter` and `result` may be NULL. A non-NULL `adapter` gets the new layer, ready to attach to sessions
 * of this model; opening the output gives the same.
 * A callback that cancels ends the run after the step at hand, with a checkpoint: the status is ONLAY_CANCELLED and
 * the message says at which step, and that the same options with ONLAY_START_RESUME go on from it. (While rows are
 * encoded there is nothing to save yet.) After any other error the newest checkpoint, if there was one, is still whole
 * and can be resumed in the same way. (If only the checkpoints could not be removed, ONLAY_IO, the output is there.) */
onlay_status onlay_train(const onlay_model *model, const onlay_train_options *options,
                         onlay_progress_callback callback, void *user, onlay_adapter **adapter,
                         onlay_trained *result, onlay_error **error);

#ifdef __cplusplus
}
#endif

#endif
