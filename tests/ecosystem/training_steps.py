"""Steps of training that one process and several ranks run alike: their model, batches and loss.

Every step has one batch a rank. Some ranks see no image, and in one step none does.
"""

import torch

from hyperllava_hf import HyperLlavaForConditionalGeneration, HyperLlavaProcessor
from hyperllava_hf.training.stages import set_trainable

NUM_RANKS = 2
# Small enough that rounding, 3e-8 in the first step, does not grow: at 0.1 it reaches 2e-4.
LEARNING_RATE = 0.01
# One row a step, one item a rank: how many images each of its conversations holds.
STEPS = (((1, 0), (2, 1)), ((1, 1), (0, 0)), ((0, 0), (0, 0)), ((0, 0), (1, 2)))


def load_model(folder, gradient_checkpointing=None):
    """Load a model for stage 2 (vision tower frozen)."""
    model = HyperLlavaForConditionalGeneration.from_pretrained(folder)
    set_trainable(model, "instruct")
    if gradient_checkpointing is not None:
        model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": gradient_checkpointing == "reentrant"}
        )
    return model.train()


def build_batches(folder):
    """Make all batches: a list of steps, each with one batch a rank."""
    processor = HyperLlavaProcessor.from_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    return [[build_batch(processor, counts, generator) for counts in step] for step in STEPS]


def build_batch(processor, counts, generator):
    conversations = []
    for number, count in enumerate(counts):
        pictures = torch.randint(0, 256, (count, 28, 28, 3), generator=generator).byte()
        content = [{"type": "image", "image": picture.numpy()} for picture in pictures]
        content.append({"type": "text", "text": f"q{number}?"})
        answer = [{"type": "text", "text": "a b c"[number:]}]
        conversations.append(
            [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        )
    return processor.apply_chat_template(
        conversations,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_labels=True,
        padding=True,
    )


def run_alone(folder):
    """Train in one process, which sees the ranks' batches one after another."""
    model = load_model(folder)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    losses = []
    for step in build_batches(folder):
        optimizer.zero_grad()
        losses.append([])
        for batch in step:
            loss = model(**batch).loss
            (loss / len(step)).backward()
            losses[-1].append(loss.item())
        optimizer.step()
    return losses, {name: value.detach() for name, value in model.state_dict().items()}
