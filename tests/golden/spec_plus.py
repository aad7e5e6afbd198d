"""Executable specification of the Plus variant: waveform -> features -> encoder -> projector -> tokens.

Plain numpy and torch, no reference code. `python spec_plus.py FOLDER ...` checks folders of golden data and prints the
largest error of every file. Nothing is cached: every step recomputes the whole sequence, which is exact.
"""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

# ----------------------------------------------------------------------------------------------- 1. features


def read_mvn(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Shift and scale: the numbers in the brackets that follow <AddShift> and <Rescale>."""
    text = path.read_text()
    pick = lambda tag: np.array(re.search(rf"<{tag}>.*?\[(.*?)\]", text, re.S)[1].split(), dtype=np.float32)  # noqa: E731
    return pick("AddShift"), pick("Rescale")


def mel_filters(bins: int, fft: int, rate: int, low: float = 20.0) -> np.ndarray:
    """[bins, fft/2 + 1] triangles, linear in mel = 1127 ln(1 + f/700), from `low` to the Nyquist frequency."""
    mel = lambda f: 1127.0 * np.log1p(np.asarray(f) / 700.0)  # noqa: E731
    edges = np.linspace(mel(low), mel(rate / 2), bins + 2)
    at = mel(np.arange(fft // 2 + 1) * rate / fft)
    rise = (at - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - at) / (edges[2:] - edges[1:-1])[:, None]
    filters = np.clip(np.minimum(rise, fall), 0, None)
    filters[:, -1] = 0  # the Nyquist bin carries no weight
    return filters


def fbank(wave: np.ndarray, rate: int = 16000, window: int = 400, shift: int = 160, bins: int = 80) -> np.ndarray:
    """Log mel energies of whole windows only: [1 + (samples - 400) // 160, 80]."""
    x = wave.astype(np.float64) * 32768
    count = 1 + (len(x) - window) // shift
    frames = np.stack([x[i * shift : i * shift + window] for i in range(count)])
    frames = frames - frames.mean(1, keepdims=True)
    frames = frames - 0.97 * np.concatenate([frames[:, :1], frames[:, :-1]], 1)
    frames = frames * (0.54 - 0.46 * np.cos(2 * np.pi * np.arange(window) / (window - 1)))
    power = np.abs(np.fft.rfft(frames, 512)) ** 2
    energies = power @ mel_filters(bins, 512, rate).T
    return np.log(np.maximum(energies, np.finfo(np.float32).eps)).astype(np.float32)


def stack_frames(frames: np.ndarray, m: int = 7, n: int = 6) -> np.ndarray:
    """ceil(T / n) rows of m frames, one every n, centred: the ends repeat the first and the last frame."""
    rows = -(-len(frames) // n)
    index = np.clip(np.arange(rows)[:, None] * n + np.arange(m) - (m - 1) // 2, 0, len(frames) - 1)
    return frames[index].reshape(rows, -1)


def features(wave: np.ndarray, mvn: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return (stack_frames(fbank(wave)) + mvn[0]) * mvn[1]


# ----------------------------------------------------------------------------------------------- 2. encoder


def sinusoid(rows: int, depth: int, dtype: torch.dtype) -> torch.Tensor:
    """[sin | cos] at positions 1.., every intermediate value rounded to `dtype`: in bfloat16 this matters a lot."""
    half = depth // 2
    step = torch.tensor([10000], dtype=dtype).log() / (depth / 2 - 1)
    rates = (torch.arange(half).float().to(dtype) * -step).exp()
    angles = torch.arange(1, rows + 1).to(dtype)[:, None] * rates[None]
    return torch.cat([angles.sin(), angles.cos()], 1)


def layer_norm(x: torch.Tensor, w: dict, name: str) -> torch.Tensor:
    """In float32 whatever the data type, eps 1e-5."""
    out = torch.nn.functional.layer_norm(x.float(), x.shape[-1:], w[name + ".weight"].float(), w[name + ".bias"].float(), 1e-5)
    return out.to(x.dtype)


def affine(x: torch.Tensor, w: dict, name: str) -> torch.Tensor:
    bias = w.get(name + ".bias")
    return torch.nn.functional.linear(x, w[name + ".weight"], bias)


def sanm(x: torch.Tensor, w: dict, name: str, heads: int) -> torch.Tensor:
    """Attention over everything plus a memory: v + depthwise convolution of v along time, zero padded."""
    q, k, v = affine(x, w, name + ".linear_q_k_v").chunk(3, -1)
    size = q.shape[-1] // heads
    split = lambda t: t.view(len(t), heads, size).transpose(0, 1)  # noqa: E731
    scores = (split(q) * size**-0.5) @ split(k).transpose(1, 2)
    mixed = (scores.softmax(-1) @ split(v)).transpose(0, 1).reshape(len(x), -1)
    kernel = w[name + ".fsmn_block.weight"]
    left = (kernel.shape[-1] - 1) // 2
    padded = torch.nn.functional.pad(v.T, (left, kernel.shape[-1] - 1 - left))
    memory = torch.nn.functional.conv1d(padded[None], kernel, groups=len(kernel))[0].T + v
    return affine(mixed, w, name + ".linear_out") + memory


def block(x: torch.Tensor, w: dict, name: str, heads: int) -> torch.Tensor:
    attended = sanm(layer_norm(x, w, name + ".norm1"), w, name + ".self_attn", heads)
    x = x + attended if x.shape == attended.shape else attended  # the first block changes the width: no residual
    inner = affine(layer_norm(x, w, name + ".norm2"), w, name + ".feed_forward.w_1").relu()
    return x + affine(inner, w, name + ".feed_forward.w_2")


def encode(feats: torch.Tensor, w: dict, conf: dict, taps: dict | None = None) -> torch.Tensor:
    """[T, 560] -> [T + 4, d]. `w`: keys below `model.audio_model.model.`; runs in the data type of the weights."""
    table, taps = w["embed.weight"], {} if taps is None else taps
    queries = table[[0, 1, 2, 15]]  # language auto, event, emotion, without inverse text normalisation
    x = torch.cat([queries, feats.to(table.dtype)]) * conf["output_size"] ** 0.5  # the queries are scaled as well
    x = x + sinusoid(len(x), x.shape[1], x.dtype)
    taps["position_added"] = x
    for group, count in (("encoders0", 1), ("encoders", conf["num_blocks"] - 1), ("tp_encoders", conf["tp_blocks"])):
        for i in range(count):
            x = block(x, w, f"encoder.{group}.{i}", conf["attention_heads"])
            taps[f"{group}.{i}"] = x
        if group == "encoders":
            x = layer_norm(x, w, "encoder.after_norm")
            taps["after_norm"] = x
    return layer_norm(x, w, "encoder.tp_norm")


def project(x: torch.Tensor, w: dict) -> torch.Tensor:
    """LayerNorm, linear, exact GELU, linear: one language-model slot per row."""
    x = layer_norm(x, w, "pre_proj_layernorm")
    return affine(torch.nn.functional.gelu(affine(x, w, "mlp.0")), w, "mlp.2")


# ----------------------------------------------------------------------------------------------- 3. prompt and tokens


def expand(template: list[int], rows: list[int], ids: dict) -> tuple[list[int], list[list[int]]]:
    """Every <|audio|> becomes begin, one context token per feature row and query (rows + 4), end."""
    prompt, spans, left = [], [], list(rows)
    for token in template:
        if token != ids["audio_placeholder"]:
            prompt.append(token)
            continue
        start, count = len(prompt) + 1, left.pop(0) + 4
        prompt += [ids["begin_of_audio"], *[ids["context_of_audio"]] * count, ids["end_of_audio"]]
        spans.append([start, start + count])
    return prompt, spans


class LanguageModel:
    def __init__(self, config: dict, w: dict) -> None:
        self.c, self.w = config, w
        self.modules = config["num_nextn_predict_layers"]
        self.backbone = config["num_hidden_layers"] - self.modules

    def rms(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + self.c["rms_norm_eps"]).rsqrt() * self.w[name]

    def layer(self, x: torch.Tensor, index: int) -> torch.Tensor:
        """One Qwen2 decoder layer over rows 0.., positions counted from 0."""
        name, w = f"model.layers.{index}.", self.w
        heads, groups = self.c["num_attention_heads"], self.c["num_key_value_heads"]
        size = self.c["hidden_size"] // heads
        y = self.rms(x, name + "input_layernorm.weight")
        q, k, v = (affine(y, w, f"{name}self_attn.{p}_proj").view(len(x), -1, size).transpose(0, 1) for p in "qkv")
        angle = torch.arange(len(x))[:, None] / self.c["rope_theta"] ** (torch.arange(0, size, 2) / size)
        cos, sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)
        turn = lambda t: t * cos + torch.cat([-t[..., size // 2 :], t[..., : size // 2]], -1) * sin  # noqa: E731
        q, k = turn(q), turn(k).repeat_interleave(heads // groups, 0)
        scores = q @ k.transpose(1, 2) / math.sqrt(size)
        scores = scores.masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -math.inf)
        mixed = scores.softmax(-1) @ v.repeat_interleave(heads // groups, 0)
        x = x + affine(mixed.transpose(0, 1).reshape(len(x), -1), w, name + "self_attn.o_proj")
        y = self.rms(x, name + "post_attention_layernorm.weight")
        gated = torch.nn.functional.silu(affine(y, w, name + "mlp.gate_proj")) * affine(y, w, name + "mlp.up_proj")
        return x + affine(gated, w, name + "mlp.down_proj")

    def embed(self, tokens: list[int], audio: list[tuple[list[int], torch.Tensor]]) -> torch.Tensor:
        x = self.w["model.embed_tokens.weight"][tokens].clone()
        for (start, stop), rows in audio:
            x[start:stop] = rows
        return x

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        for i in range(self.backbone):
            x = self.layer(x, i)
        return self.rms(x, "model.norm.weight")

    def cascade(self, k: int, h: torch.Tensor, tokens: list[int], audio) -> torch.Tensor:
        """Hidden rows of MCTP k from those below; row j also takes token j + k + 1. `audio` is empty in the release."""
        x = self.embed(tokens, audio)[k + 1 : k + 1 + len(h)]
        x = torch.cat([self.rms(x, f"mtp_embed_norms.{k}.weight"), self.rms(h, f"mtp_hidden_norms.{k}.weight")], -1)
        x = self.layer(affine(x, self.w, f"mtp_projs.{k}"), self.backbone + k)
        return self.rms(x, "model.norm.weight")

    def generate(self, prompt, audio, pattern, count, penalty=1.0, mctp_audio=()) -> list[int]:
        """Greedy tokens. `audio` replaces rows for the backbone only."""
        tokens, steps, pairs = list(prompt), [], list(zip(pattern[::2], pattern[1::2]))
        while len(steps) < count:
            main, extra = pairs.pop(0) if len(pairs) > 1 else pairs[0]
            steps += ["M"] * main + ["m"] * extra
        module = 0
        for step in steps[:count]:
            if step == "M" or module >= self.modules:  # an m beyond the last module is the backbone's, then from 0 again
                h = h0 = self.hidden(self.embed(tokens, audio))
                module = 0
            else:
                h = h0
                for k in range(module + 1):
                    h = self.cascade(k, h, tokens, mctp_audio)
                module += 1
            logits = self.w["lm_head.weight"] @ h[-1]
            if penalty != 1.0:
                seen = list(set(tokens))
                logits[seen] = torch.where(logits[seen] < 0, logits[seen] * penalty, logits[seen] / penalty)
            tokens.append(int(logits.argmax()))
        return tokens[len(prompt) :]


# ----------------------------------------------------------------------------------------------- check


def below(w: dict, prefix: str) -> dict:
    return {k[len(prefix) :]: v for k, v in w.items() if k.startswith(prefix)}


def load_conf(folder: Path) -> dict:
    text = (folder / "sensevoice" / "config.yaml").read_text()
    return {k: int(v) for k, v in re.findall(r"^ +(output_size|attention_heads|num_blocks|tp_blocks): (\d+)", text, re.M)}


def check(folder: Path) -> None:
    worst: dict[str, float] = {}

    def note(name: str, got: torch.Tensor, want: torch.Tensor, relative: bool = False) -> None:
        assert got.shape == want.shape, (name, got.shape, want.shape)
        error = float((got.float() - want.float()).abs().max()) / (float(want.float().abs().max()) if relative else 1.0)
        worst[name] = max(worst.get(name, 0.0), error)

    mvn, conf = read_mvn(folder / "sensevoice" / "am.mvn"), load_conf(folder)
    io = load_file(folder / "frontend_io.safetensors")
    clips = [k.removesuffix(".wave") for k in io if k.endswith(".wave")]
    for c in clips:
        wave = io[c + ".wave"].numpy()
        note("fbank (absolute)", torch.from_numpy(fbank(wave)), io[c + ".fbank"])
        note("features (absolute)", torch.from_numpy(features(wave, mvn)), io[c + ".features"])

    ids = json.loads((folder / "vocabulary.json").read_text())
    enc = load_file(folder / "encoder_io.safetensors")
    raw = load_file(folder / "plus_vanilla" / "model.safetensors")
    for dtype, ending in ((torch.float32, ""), (torch.bfloat16, "_bfloat16")):
        w = {k: v.to(dtype) for k, v in raw.items()}
        tower, projector = below(w, "model.audio_model.model."), below(w, "model.audio_projection.")
        for c in clips:
            for rounded in (False, True) if dtype == torch.float32 else (True,):
                f = io[c + ".features"]
                h = encode(f.bfloat16() if rounded else f, tower, conf)
                tag = ending or ("_rounded_features" if rounded else "")
                note(f"hidden{tag} (relative)", h, enc[f"{c}.hidden{tag}"], True)
                note(f"embeddings{tag} (relative)", project(h, projector), enc[f"{c}.embeddings{tag}"], True)
    w = {k: v.float() for k, v in raw.items()}
    tower, taps = below(w, "model.audio_model.model."), {}
    for key in (k for k in enc if ".stage." in k):
        clip, stage = key.split(".stage.")
        encode(io[clip + ".features"], tower, conf, taps)
        note("stages (relative)", taps[stage], enc[key], True)
    for row, (clip, n) in enumerate(zip(clips[-3:-1], enc["batch.lengths"].tolist())):
        h = encode(io[clip + ".features"].bfloat16(), tower, conf)
        note("padded batch (relative)", h, enc["batch.hidden"][row, :n], True)
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        note(f"sinusoid.{name} (absolute)", sinusoid(400, 560, dtype)[enc["sinusoid.rows"]], enc[f"sinusoid.{name}"])

    total = equal = unrounded = robust = 0
    blind = {"no merging": [0, 0], "MCTP sees the audio": [0, 0]}
    for checkpoint in sorted(p for p in folder.iterdir() if (p / "model.safetensors").exists()):
        w = {k: v.float() for k, v in load_file(checkpoint / "model.safetensors").items()}
        model = LanguageModel(json.loads((checkpoint / "config.json").read_text()), w)
        tower, projector = below(w, "model.audio_model.model."), below(w, "model.audio_projection.")
        tensors = load_file(checkpoint / "prompt_io.safetensors")
        for case in json.loads((checkpoint / "greedy_tokens.json").read_text()):
            feats = [torch.from_numpy(features(io[c + ".wave"].numpy(), mvn)) for c in case["clips"]]
            prompt, spans = expand(case["template"], [len(f) for f in feats], ids)
            assert prompt == case["prompt"] and spans == case["audio_spans"]
            audio = [(s, project(encode(f.bfloat16(), tower, conf), projector)) for s, f in zip(spans, feats)]
            plain = [(s, project(encode(f, tower, conf), projector)) for s, f in zip(spans, feats)]
            for k, (_, rows) in enumerate(audio):
                note("prompt: audio embeddings (relative)", rows, tensors[f"{case['name']}.audio{k}.embeddings"], True)
            x = model.embed(prompt, audio)
            note("prompt: merged embeddings (relative)", x, tensors[case["name"] + ".merged_embeddings"], True)
            note("prompt: hidden (relative)", model.hidden(x), tensors[case["name"] + ".hidden"], True)
            for run in case["runs"]:
                rule = (run["pattern"], len(run["tokens"]), run["repetition_penalty"])
                total += 1
                equal += model.generate(prompt, audio, *rule) == run["tokens"]
                robust += run["robust"]
                unrounded += run["robust"] and model.generate(prompt, plain, *rule) == run["tokens"]
                if audio and "--controls" in sys.argv:
                    blind["no merging"][1] += 1
                    blind["no merging"][0] += model.generate(prompt, [], *rule) != run["tokens"]
                    if model.modules and run["pattern"][1]:
                        blind["MCTP sees the audio"][1] += 1
                        blind["MCTP sees the audio"][0] += model.generate(prompt, audio, *rule, mctp_audio=audio) != run["tokens"]
    print(folder.name)
    for name, error in worst.items():
        print(f"  {name:48} {error:.2e}")
    print(f"  token lists equal: {equal} of {total}; of the {robust} robust ones, without rounding the features: {unrounded}")
    if "--controls" in sys.argv:
        print("  wrong variants noticed:", {k: f"{a} of {b}" for k, (a, b) in blind.items()})
    assert equal == total and unrounded == robust


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    for argument in sys.argv[1:]:
        if not argument.startswith("--"):
            check(Path(argument))
