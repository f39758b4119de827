"""HyperLLaVA's projector and decoder once more, in float64, from the paper's Eq. 3-7.

Written from the specification, position by position: every position's generated weights are made
in full and applied one at a time. Slow, and without a line of the package's code.

Only the visual features f_V (the tower is transformers' own, without experts) are taken as given.
"""

import torch

EPS = 1e-6


def normalize(x):
    """x / sqrt(mean(x^2) + eps), without parameters."""
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + EPS)


def swiglu(z):
    """silu(z_gate) * z_value."""
    half = z.shape[-1] // 2
    gate, value = z[:half], z[half:]
    return gate / (1 + torch.exp(-gate)) * value


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))


class Reference:
    """The model of a state dict and a configuration."""

    def __init__(self, model):
        self.p = {name: p.detach().double() for name, p in model.state_dict().items()}
        self.config = model.config
        self.text = model.config.text_config

    # Eq. 3-5

    def weights(self, expert, hypernetwork, head, guidance):
        """(W_d, W_u) of one guidance vector: the slices of K(n)."""
        p, source = self.p, self.config.expert_source
        down, up = p[f"{expert}.bias_down"], p[f"{expert}.bias_up"]
        if source == "static":
            return down, up.T
        if source == "guided":
            e = p[f"{expert}.encoder_weight"] @ guidance + p[f"{expert}.encoder_bias"]
        else:
            e = p[f"{expert}.latent"]
        hidden = p[f"{hypernetwork}.hidden_weight"] @ e + p[f"{hypernetwork}.hidden_bias"]
        shared = f"{hypernetwork}.heads.{head}"
        down = (
            sum(hidden[k] * p[f"{shared}.weight_down"][k] for k in range(len(hidden)))
            + p[f"{shared}.bias_down"]
            + down
        )
        up = (
            sum(hidden[k] * p[f"{shared}.weight_up"][k] for k in range(len(hidden)))
            + p[f"{shared}.bias_up"]
            + up
        )
        return down, up.T

    @staticmethod
    def apply(weights, x):
        down, up = weights
        return up @ swiglu(down @ x)

    # Eq. 6

    def project(self, features):
        """V of each image, features (N, P, D_v)."""
        p, place = self.p, self.config.visual_expert
        base = "model.multi_modal_projector"
        one = (p[f"{base}.linear_1.weight"], p[f"{base}.linear_1.bias"])
        two = (p[f"{base}.linear_2.weight"], p[f"{base}.linear_2.bias"])
        hypernetwork = f"{base}.visual_expert.hypernetwork"
        heads = {"first": 0, "second": 1 if place == "both" else 0}
        # Two experts of one shape share W2 and B2.
        if features.shape[-1] == one[0].shape[0]:
            heads["second"] = 0
        projected = []
        for image in features.double():
            guidance = normalize(image).mean(0)
            weights = {
                site: self.weights(f"{base}.visual_expert.{site}", hypernetwork, head, guidance)
                for site, head in heads.items()
                if place in (site, "both")
            }
            for patch in image:
                first = one[0] @ patch + one[1]
                inner = first
                if "first" in weights:
                    inner = inner + self.apply(weights["first"], patch)
                value = two[0] @ gelu(inner) + two[1]
                if "second" in weights:
                    value = value + self.apply(weights["second"], first)
                projected.append(value)
        return torch.stack(projected)

    # the decoder

    def rms_norm(self, x, name):
        x = x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.text.rms_norm_eps)
        return x * self.p[f"model.language_model.{name}.weight"]

    def attention(self, x, n, allowed):
        """Causal attention of one row, x (T, D); allowed (T,) marks keys that may be seen."""
        p = self.p
        length, heads, groups = len(x), self.text.num_attention_heads, self.text.num_key_value_heads
        width = self.text.hidden_size // heads
        projections = [
            x @ p[f"model.language_model.layers.{n}.self_attn.{name}_proj.weight"].T
            for name in "qkv"
        ]
        frequency = 10000.0 ** (-torch.arange(0, width, 2).double() / width)
        angle = torch.outer(torch.arange(length).double(), frequency)

        def rotate(t):
            a, b = t[:, : width // 2], t[:, width // 2 :]
            return torch.cat(
                [a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1
            )

        q, k, v = (t.reshape(length, -1, width).transpose(0, 1) for t in projections)
        mixed = []
        for head in range(heads):
            group = head * groups // heads
            scores = rotate(q[head]) @ rotate(k[group]).T / width**0.5
            hidden = torch.ones(length, length).triu(1).bool() | ~allowed[None, :]
            scores = scores.masked_fill(hidden & ~torch.eye(length).bool(), float("-inf"))
            mixed.append(scores.softmax(-1) @ v[group])
        return (
            torch.cat(mixed, -1) @ p[f"model.language_model.layers.{n}.self_attn.o_proj.weight"].T
        )

    def mlp(self, x, n):
        p, base = self.p, f"model.language_model.layers.{n}.mlp"
        gate, up = x @ p[f"{base}.gate_proj.weight"].T, x @ p[f"{base}.up_proj.weight"].T
        return (gate * torch.sigmoid(gate) * up) @ p[f"{base}.down_proj.weight"].T

    def pool(self, guidance, prompt, is_image):
        """One vector of a row's prompt positions."""
        pooling = self.config.language_guidance_pooling
        if not prompt.any():
            return torch.zeros_like(guidance[0])
        if pooling == "last":
            return guidance[prompt.nonzero().max()]
        if pooling == "text" and (prompt & ~is_image).any():
            prompt = prompt & ~is_image
        return guidance[prompt].mean(0)

    def row_logits(self, ids, image_values, allowed, prompt, experts, guide_at):
        """Logits (T, V) of one row; guide_at k reads guidance from hidden state k."""
        p = self.p
        h = p["model.language_model.embed_tokens.weight"][ids].clone()
        is_image = ids == self.config.image_token_id
        h[is_image] = image_values
        guidance = None
        self.guided_by, self.states = None, []
        for n in range(self.text.num_hidden_layers):
            self.states.append(h)
            if n == guide_at:
                guidance = normalize(h)
                self.guided_by = guidance
                if self.config.language_guidance_scope == "prompt":
                    guidance = self.pool(guidance, prompt, is_image).expand_as(h)
            layer = f"layers.{n}"
            h = h + self.attention(self.rms_norm(h, f"{layer}.input_layernorm"), n, allowed)
            x = self.rms_norm(h, f"{layer}.post_attention_layernorm")
            update = self.mlp(x, n)
            if n in experts:
                expert = f"model.language_model.layers.{n}.language_expert"
                shifts = []
                for t in range(len(x)):
                    g = None if guidance is None else guidance[t]
                    weights = self.weights(expert, "model.language_model.language_expert", 0, g)
                    shifts.append(self.apply(weights, x[t]))
                update = update + torch.stack(shifts)
            h = h + update
        return self.rms_norm(h, "norm") @ p["lm_head.weight"].T

    def logits(self, ids, features=None, attended=None, prompt=None, *, experts=(), guide_at=None):
        """Logits (B, T, V); features are f_V (N, P, D_v) in the order of the placeholders."""
        attended = torch.ones_like(ids).bool() if attended is None else attended.bool()
        prompt = attended if prompt is None else prompt.bool() & attended
        values = self.project(features) if features is not None else torch.zeros(0)
        rows = []
        for i, row in enumerate(ids):
            count = int((row == self.config.image_token_id).sum())
            own, values = values[:count], values[count:]
            rows.append(self.row_logits(row, own, attended[i], prompt[i], experts, guide_at))
        return torch.stack(rows)
