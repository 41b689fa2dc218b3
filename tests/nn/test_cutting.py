"""A definition that is cut out of its file computes what the whole file computes."""

import pytest

from glot.nn.own import find_code, run_code


def test_every_statement_that_a_pooler_needs_is_carried_and_no_other(tmp_path):
    path = tmp_path / "m.py"
    path.write_text("""from __future__ import annotations
import json
from math import *
from torch import nn
try:
    import ujson as quick
except ImportError:
    quick = json
OPTIONS = {"scale": 1.0}
OPTIONS["scale"] = 2.0
NAMES = []
for name in ("a", "b"):
    NAMES.append(name)
class Left:
    size = 0
class Right:
    size = 0
class Third:
    size = 0
for side in (Left, Right):
    setattr(side, "size", 10)
Third.size = 100
for other in (Left, Right):
    open("nowhere.txt")
if OPTIONS["scale"] > 1:
    BIG = True
else:
    BIG = False
UNUSED = open("nowhere.txt").read()
def register(kind):
    OPTIONS["kind"] = kind
    return kind
@register
class P(nn.Module):
    def __init__(self, in_dim):
        super().__init__()
        self.out_dim, self.scale = in_dim, OPTIONS["scale"] * sqrt(4) + len(NAMES) + BIG + quick.loads("1")
        self.sizes = Left.size, Right.size, Third.size
if __name__ == "__main__":
    raise SystemExit("a script")
""")
    code = find_code(f"{path}:P", "pooling_method")
    made = run_code(code, "--pooling_method=x")(3)
    assert made.scale == 2 * 2 + 2 + 1 + 1 and made.sizes == (10, 10, 100)
    assert "UNUSED" not in code.source and "__main__" not in code.source


WAYS = {
    "a registry": "def register(name):\n    def add(kind):\n        T[name] = kind\n        return kind\n    return add\n"
    "@register('a')\nclass Big: pass",
    "a function that changes its argument": "def fill(t): t['a'] = 1\nfill(T)",
    "another name": "A = T\nA['a'] = 1",
    "global": "def setup():\n    global S\n    S = 9\nsetup()",
    "while": "while len(L) < 3: L.append(1)",
    "try": "try:\n    L.append(1)\nexcept ValueError: pass",
    "the value of a method": "L += [1, 2]\nfirst = L.pop()",
    "a comprehension": "_ = [L.append(i) for i in range(3)]",
    "map": "list(map(L.append, range(3)))",
    "pairs": "PAIRS = [(T, 3)]\nfor table, value in PAIRS: table['a'] = value",
    "a method of a class": "dict.update(T, a=1)",
    "a subclass that reports itself": "class Base:\n    def __init_subclass__(cls): L.append(cls)\nclass One(Base): pass",
    "a class's own setattr": "type.__setattr__(N, 'size', 3)",
    "an import in a try": "try:\n    import json\n    S = 3\nexcept ImportError:\n    S = 4",
    "else of a script's block": "if __name__ == '__main__':\n    S = 4\nelse:\n    S = 5",
    "match": "match [7, 8]:\n    case [S, *rest]: L.extend(rest)",
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_cut_source_computes_what_the_whole_file_does(way, tmp_path):
    text = f"""
class N:
    size = 1
T, L, S = {{}}, [], 1
OPTIONS = {{"lr": 1}}
{way}
def value(): return (sorted(map(str, T)), len(L), S, N.size, OPTIONS)
class P: found = value()
def main(): open("nowhere.txt" + str(P) + str(OPTIONS))
"""
    names: dict = {"__name__": "whole"}
    exec(text, names)
    path = tmp_path / "m.py"
    path.write_text(text + "main()\nfor option in OPTIONS: main()\nrun = open('nowhere.txt', P)\n")
    cut = run_code(find_code(f"{path}:P", "pooling_method"), "--pooling_method=x")
    assert cut.found == names["P"].found != ([], 0, 1, 1, {"lr": 1})
