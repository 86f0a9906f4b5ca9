"""Which keys were used lately, whatever happened to the file."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from vramancer_cli.serving.accepted_keys import FILE_NAME, KEPT_S, AcceptedKeys

KEYS = [f"{number:064x}" for number in range(4)]


def test_it_is_remembered_across_restarts_and_forgotten_in_time(tmp_path: Path) -> None:
    AcceptedKeys(tmp_path, 100.0).accept(KEYS[0], KEYS[1], 100.0)
    assert AcceptedKeys(tmp_path, 200.0).body_of(KEYS[0], 200.0) == KEYS[1]
    assert AcceptedKeys(tmp_path, 100.0 + KEPT_S + 1).body_of(KEYS[0], 100.0 + KEPT_S + 1) is None
    assert (tmp_path / FILE_NAME).read_bytes() == b"", "what is over is not kept"


def test_without_a_folder_it_is_in_memory_only() -> None:
    keys = AcceptedKeys(None, 0.0)
    keys.accept(KEYS[0], KEYS[1], 0.0)
    assert keys.body_of(KEYS[0], 1.0) == KEYS[1]
    keys.refuse(KEYS[0])
    assert keys.body_of(KEYS[0], 1.0) is None


@given(st.lists(st.tuples(st.sampled_from(KEYS), st.booleans()), max_size=12), st.binary(max_size=90))
def test_what_a_crash_tore_off_never_frees_a_key(happened: list[tuple[str, bool]], torn: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder, used = Path(name), dict[str, str]()
        keys = AcceptedKeys(folder, 0.0)
        for key, accepts in happened:
            if accepts and key not in used:
                keys.accept(key, KEYS[0], 1.0)
                used[key] = KEYS[0]
            elif not accepts:
                keys.refuse(key)
                used.pop(key, None)
        with (folder / FILE_NAME).open("ab") as file:
            file.write(torn.replace(b"-", b"?").replace(b"\n", b"?"))
        again = AcceptedKeys(folder, 2.0)
        for key in KEYS:
            assert again.body_of(key, 2.0) == used.get(key)
