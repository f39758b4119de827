"""Run by torchrun in each rank: load with tp_plan="auto", compare with one process.

Arguments: the folder, in which "expected.pt" holds inputs, logits and tokens. Rank 0 prints the
largest difference, whether the tokens are equal, and whether layers were sharded.
"""

import sys

import torch
from transformers import AutoModelForImageTextToText

import hyperllava_hf  # noqa: F401


def main():
    folder = sys.argv[1]
    torch.distributed.init_process_group("gloo")
    inputs, expected, tokens = torch.load(f"{folder}/expected.pt")
    model = AutoModelForImageTextToText.from_pretrained(folder, tp_plan="auto").eval()
    with torch.no_grad():
        found = model(**inputs).logits
    found = found.full_tensor() if hasattr(found, "full_tensor") else found
    inputs.pop("guidance_mask", None)
    generated = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    weight = model.model.language_model.layers[0].mlp.up_proj.weight
    if torch.distributed.get_rank() == 0:
        local = weight.to_local() if hasattr(weight, "to_local") else weight
        print((found - expected).abs().max().item(), torch.equal(generated, tokens), len(local))
    # gloo's threads abort a rank that is still among them when another one tears the group down.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
