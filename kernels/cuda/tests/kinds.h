// Every format of weights, and its products with few rows.
#pragma once
#include "../matvec.cu"

typedef void (*Product)(const u8*, u64, int, int, const float*, int, const float*, float*);
struct Weight {
    const char* name;
    int format, len, bytes;
    Product one, four;
};
#define KIND(n, F, len, bytes) {#n, F, len, bytes, matvec_##n, matvec4_##n}
static const Weight kinds[] = {
    KIND(f32, F32, 1, 4),         KIND(f16, F16, 1, 2),         KIND(bf16, BF16, 1, 2),
    KIND(q4_0, Q4_0, 32, 18),     KIND(q4_1, Q4_1, 32, 20),     KIND(q5_0, Q5_0, 32, 22),
    KIND(q5_1, Q5_1, 32, 24),     KIND(q8_0, Q8_0, 32, 34),     KIND(q2_k, Q2_K, 256, 84),
    KIND(q3_k, Q3_K, 256, 110),   KIND(q4_k, Q4_K, 256, 144),   KIND(q5_k, Q5_K, 256, 176),
    KIND(q6_k, Q6_K, 256, 210),   KIND(iq4_nl, IQ4_NL, 32, 18), KIND(iq4_xs, IQ4_XS, 256, 136),
};
