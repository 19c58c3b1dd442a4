#!/usr/bin/env python3
"""Write a checkpoint as GGUF (F32 or F16), and on request as a transformers folder.

transformers keeps the two halves of a rotated pair 32 rows apart; llama.cpp's "llama" wants them side by side, so the
rows of q and k are reordered on the way.
"""
import argparse
import json
import pathlib

import gguf
import numpy as np
import torch
from sentencepiece import sentencepiece_model_pb2 as pb

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] | trim + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
TYPE = {1: gguf.TokenType.NORMAL, 2: gguf.TokenType.UNKNOWN, 3: gguf.TokenType.CONTROL, 4: gguf.TokenType.USER_DEFINED,
        5: gguf.TokenType.UNUSED, 6: gguf.TokenType.BYTE}


def permute(w, heads):
    return w.reshape(heads, 2, w.shape[0] // heads // 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def write_gguf(path, weights, cfg, tokenizer, ftype, name, description):
    w = gguf.GGUFWriter(path, "llama")
    w.add_type(gguf.GGUFType.MODEL)
    w.add_name(name)
    w.add_basename(name.rsplit("-", 1)[0])
    w.add_size_label("15M")
    w.add_author("Onlay project")
    w.add_organization("Onlay project")
    w.add_license("MIT OR Apache-2.0")
    w.add_description(description)
    w.add_languages(["en"])
    w.add_tags(["text-generation", "children's books", "chat"])
    w.add_context_length(cfg["max_position_embeddings"])
    w.add_embedding_length(cfg["hidden_size"])
    w.add_block_count(cfg["num_hidden_layers"])
    w.add_feed_forward_length(cfg["intermediate_size"])
    w.add_head_count(cfg["num_attention_heads"])
    w.add_head_count_kv(cfg["num_key_value_heads"])
    w.add_key_length(cfg["head_dim"])
    w.add_value_length(cfg["head_dim"])
    w.add_rope_dimension_count(cfg["head_dim"])
    w.add_rope_freq_base(cfg["rope_theta"])
    w.add_layer_norm_rms_eps(cfg["rms_norm_eps"])
    w.add_vocab_size(cfg["vocab_size"])
    w.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if ftype == "f16" else gguf.LlamaFileType.ALL_F32)
    m = pb.ModelProto()
    m.ParseFromString(pathlib.Path(tokenizer).read_bytes())
    w.add_tokenizer_model("llama")
    w.add_tokenizer_pre("default")
    w.add_token_list([p.piece.encode() for p in m.pieces])
    w.add_token_scores([p.score for p in m.pieces])
    w.add_token_types([TYPE[p.type] for p in m.pieces])
    ids = {p.piece: i for i, p in enumerate(m.pieces)}
    w.add_bos_token_id(ids["<s>"])
    w.add_eos_token_id(ids["</s>"])
    w.add_unk_token_id(ids["<unk>"])
    w.add_eot_token_id(ids["<|end|>"])
    w.add_add_bos_token(True)
    w.add_add_eos_token(False)
    w.add_add_space_prefix(True)
    w.add_chat_template(TEMPLATE)

    def put(name, t):
        a = t.float().numpy()
        w.add_tensor(name, a.astype(np.float16) if ftype == "f16" and a.ndim == 2 else a)

    put("token_embd.weight", weights["model.embed_tokens.weight"])
    put("output_norm.weight", weights["model.norm.weight"])
    h, kv = cfg["num_attention_heads"], cfg["num_key_value_heads"]
    for i in range(cfg["num_hidden_layers"]):
        g = lambda n: weights[f"model.layers.{i}.{n}.weight"]
        put(f"blk.{i}.attn_norm.weight", g("input_layernorm"))
        put(f"blk.{i}.attn_q.weight", permute(g("self_attn.q_proj"), h))
        put(f"blk.{i}.attn_k.weight", permute(g("self_attn.k_proj"), kv))
        put(f"blk.{i}.attn_v.weight", g("self_attn.v_proj"))
        put(f"blk.{i}.attn_output.weight", g("self_attn.o_proj"))
        put(f"blk.{i}.ffn_norm.weight", g("post_attention_layernorm"))
        put(f"blk.{i}.ffn_gate.weight", g("mlp.gate_proj"))
        put(f"blk.{i}.ffn_up.weight", g("mlp.up_proj"))
        put(f"blk.{i}.ffn_down.weight", g("mlp.down_proj"))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def write_hf(folder, weights, cfg, tokenizer):
    """A folder that transformers loads, for checks and for PEFT."""
    from transformers import LlamaConfig, LlamaForCausalLM
    folder = pathlib.Path(folder)
    c = LlamaConfig(**cfg, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, hidden_act="silu", attention_bias=False, mlp_bias=False)
    model = LlamaForCausalLM(c)
    full = dict(weights)
    full["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(full)
    model.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(pathlib.Path(tokenizer).read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "LlamaTokenizer", "legacy": True, "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "eos_token": "</s>",
        "unk_token": "<unk>", "additional_special_tokens": ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"], "chat_template": TEMPLATE}, indent=1))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--checkpoint", required=True, help="state.pt")
    ap.add_argument("--tokenizer", required=True, help="tokenizer.model")
    ap.add_argument("--out", required=True, help="GGUF file to write")
    ap.add_argument("--type", choices=["f32", "f16"], default="f32")
    ap.add_argument("--name", default="fable-15m")
    ap.add_argument("--hf", help="folder for the transformers form")
    args = ap.parse_args()
    s = torch.load(args.checkpoint, map_location="cpu")
    text = ("A small language model of the Onlay project, trained from nothing on public-domain English children's books; "
            "it tells fairy tales and knows the chat form.")
    write_gguf(args.out, s["model"], s["config"], args.tokenizer, args.type, args.name, text)
    if args.hf:
        write_hf(args.hf, s["model"], s["config"], args.tokenizer)


if __name__ == "__main__":
    main()
