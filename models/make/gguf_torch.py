"""Read a quantized GGUF back into torch: weights (dequantized, q and k in transformers' order) and tokenizer."""
import gguf
import numpy as np
import torch

from model import Config, Llama


def field(r, name):
    return r.fields[name].contents()


def unpermute(w, heads):
    return w.reshape(heads, w.shape[0] // heads // 2, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def load_weights(path):
    r = gguf.GGUFReader(path)
    c = Config(
        vocab_size=len(field(r, "tokenizer.ggml.tokens")), hidden_size=field(r, "llama.embedding_length"),
        intermediate_size=field(r, "llama.feed_forward_length"), num_hidden_layers=field(r, "llama.block_count"),
        num_attention_heads=field(r, "llama.attention.head_count"), num_key_value_heads=field(r, "llama.attention.head_count_kv"),
        head_dim=field(r, "llama.rope.dimension_count"), max_position_embeddings=field(r, "llama.context_length"),
        rope_theta=float(field(r, "llama.rope.freq_base")), rms_norm_eps=float(field(r, "llama.attention.layer_norm_rms_epsilon")))
    names = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
             "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
             "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    out = {}
    for t in r.tensors:
        a = gguf.dequantize(t.data, t.tensor_type).astype(np.float32).reshape([int(x) for x in reversed(t.shape)])
        p = t.name.split(".")
        if p[0] == "blk":
            if p[2] == "attn_q":
                a = unpermute(a, c.num_attention_heads)
            elif p[2] == "attn_k":
                a = unpermute(a, c.num_key_value_heads)
            n = f"model.layers.{p[1]}.{names[p[2]]}.weight"
        else:
            n = {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}[p[0]]
        out[n] = torch.from_numpy(np.ascontiguousarray(a))
    return out, c


def load_model(path):
    w, c = load_weights(path)
    m = Llama(c)
    m.load_state_dict(w)
    return m.eval()


def load_hf(path):
    import dataclasses

    from transformers import LlamaConfig, LlamaForCausalLM
    w, c = load_weights(path)
    w["lm_head.weight"] = w["model.embed_tokens.weight"]
    m = LlamaForCausalLM(LlamaConfig(**dataclasses.asdict(c), tie_word_embeddings=True, bos_token_id=1, eos_token_id=2))
    m.load_state_dict(w)
    return m


def load_tokenizer(path):
    """A SentencePiece processor with the vocabulary of the file."""
    import sentencepiece as spm
    from sentencepiece import sentencepiece_model_pb2 as pb
    r = gguf.GGUFReader(path)
    m = pb.ModelProto()
    kinds = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6}
    for tok, score, kind in zip(field(r, "tokenizer.ggml.tokens"), field(r, "tokenizer.ggml.scores"), field(r, "tokenizer.ggml.token_type")):
        m.pieces.add(piece=tok, score=score, type=kinds[kind])
    m.trainer_spec.model_type = 2
    m.trainer_spec.byte_fallback = True
    m.trainer_spec.vocab_size = len(m.pieces)
    m.normalizer_spec.name = "identity"
    m.normalizer_spec.add_dummy_prefix = True
    m.normalizer_spec.remove_extra_whitespaces = False
    m.normalizer_spec.escape_whitespaces = True
    return spm.SentencePieceProcessor(model_proto=m.SerializeToString())
