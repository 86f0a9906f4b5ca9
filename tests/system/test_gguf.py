"""`vramancer start --model model.gguf`: two real nodes answer as transformers does with the file's weights.

Greedy, float32, with the margin asserted (grade: identical). The layers are held in the file's own blocks.
"""

from __future__ import annotations

from pathlib import Path

import torch
from openai import OpenAI

from build_scripts.local_cluster import local_cluster
from tests.helpers.checkpoints import make_tokenizer
from tests.helpers.gguf_files import write_gguf

MARGIN = 1e-3
NEW_TOKENS = 8
PROMPT = "several machines hold one model, x"


def test_two_nodes_answer_out_of_a_gguf_file(tmp_path: Path) -> None:
    file = tmp_path / "tiny.Q8_0.gguf"
    tokenizer, model = make_tokenizer(300), write_gguf(file, vocab_size=300, num_hidden_layers=4)
    prompt = tokenizer.encode(PROMPT)
    with torch.inference_mode():
        made = model.generate(
            torch.tensor([prompt]),
            do_sample=False,
            eos_token_id=1,
            pad_token_id=1,
            max_new_tokens=NEW_TOKENS,
            output_logits=True,
            return_dict_in_generate=True,
        )
    top = torch.cat(made.logits).topk(2).values
    assert float((top[:, 0] - top[:, 1]).min()) > MARGIN
    expected = tokenizer.decode(made.sequences[0, len(prompt) :], skip_special_tokens=True)
    with local_cluster(tmp_path / "nodes") as cluster:
        cluster.start_head("--model", str(file), "--dtype", "float32", "--prefer", "room")
        cluster.add_worker()
        assert cluster.wait_ready(2).quantize == "stored"
        client = OpenAI(base_url=f"{cluster.head.api_url}/v1", api_key="none", max_retries=0, timeout=60)
        answer = client.completions.create(model="tiny.Q8_0", prompt=PROMPT, temperature=0, max_tokens=NEW_TOKENS)
    assert answer.choices[0].text == expected
