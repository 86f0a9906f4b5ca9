"""The tokenizer of the built-in model: byte-level BPE, its special tokens and its chat template.

Never imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from build_scripts.guide_text import Dialogue

VOCAB_SIZE: Final = 2048
PAD: Final = "<|pad|>"
BEGIN: Final = "<|begin|>"
END: Final = "<|end|>"
ROLES: Final = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
SPECIAL_IDS: Final = {token: number for number, token in enumerate((PAD, BEGIN, END, *ROLES.values()))}
IGNORED: Final = -100
"""The label of a token that the model is not trained to say, as torch's cross_entropy knows it."""

CHAT_TEMPLATE: Final = (
    "{{ bos_token }}"
    "{%- for message in messages %}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{- raise_exception('The guide knows only the roles system, user and assistant.') }}"
    "{%- endif %}"
    "{{- '<|' + message['role'] + '|>' + (message['content'] | trim) + '<|end|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)


def train_tokenizer(dialogues: Iterable[Dialogue]) -> Tokenizer:
    """Learns the merges from the dialogues; the same dialogues give the same tokenizer, byte for byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_IDS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((message.content for dialogue in dialogues for message in dialogue), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, SPECIAL_IDS[BEGIN])]
    )
    return tokenizer


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers saves and loads it."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def encode(tokenizer: Tokenizer, dialogue: Dialogue) -> tuple[list[int], list[int]]:
    """Token ids of a dialogue, as the chat template writes it, and labels: answers with their END, else IGNORED."""
    ids, labels = [SPECIAL_IDS[BEGIN]], [IGNORED]
    for message in dialogue:
        said = [*tokenizer.encode(message.content, add_special_tokens=False).ids, SPECIAL_IDS[END]]
        ids += [SPECIAL_IDS[ROLES[message.role]], *said]
        labels += [IGNORED, *(said if message.role == "assistant" else [IGNORED] * len(said))]
    return ids, labels
