"""Interrupts leave neither lock files nor half-written folders, wherever they come."""

import sys
from pathlib import Path

from hgsp.console.result_folders import new_folder

TRACED = ("result_folders.py", "locks.py", str(Path("filelock", "_unix.py")), str(Path("filelock", "_windows.py")))


def interrupted_at(instruction: int, target: Path) -> bool:
    """Start to write a folder, with an interrupt at one of the instructions that do; False if there are fewer."""
    left = instruction

    def trace(frame, event, _):
        nonlocal left
        if not frame.f_code.co_filename.endswith(TRACED):
            return None
        frame.f_trace_opcodes = True
        left -= event == "opcode"
        if not left:
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with new_folder(target, overwrite=False):
            sys.settrace(None)
            raise TimeoutError
    except KeyboardInterrupt:
        return True
    except TimeoutError:
        return False
    finally:
        sys.settrace(before)


def test_an_interrupt_at_any_instruction_leaves_nothing(tmp_path):
    instruction = 1
    while interrupted_at(instruction, tmp_path / "folder" / str(instruction)):  # filelock remembers an interrupted name
        assert not list(tmp_path.iterdir()), instruction
        instruction += 1
    assert instruction > 100
    assert not list(tmp_path.iterdir())
