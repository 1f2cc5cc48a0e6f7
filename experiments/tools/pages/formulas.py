"""Formulas as docstrings write them, in LaTeX.

Docstrings are read in terminals, so their formulas are plain text. The grammar is small: Greek
letters by their names, `_` and `^` with a name, a number, (...) or {...} after them, sqrt(...), the
names of functions, words of text, and two spaces where a gap is meant.
"""

import re

_GREEK = (
    *("alpha", "beta", "gamma", "Gamma", "delta", "Delta", "epsilon", "zeta", "eta", "theta"),
    *("kappa", "lambda", "Lambda", "mu", "nu", "xi", "pi", "rho", "sigma", "Sigma", "tau"),
    *("phi", "Phi", "psi", "chi", "omega", "Omega"),
)
_FUNCTIONS = ("log", "exp", "tanh", "min", "max", "sum", "prod", "int", "cos", "sin", "det")
_SYMBOLS = {name: rf"\{name}" for name in (*_GREEK, *_FUNCTIONS)}
_SYMBOLS |= {"eps": r"\varepsilon", "inf": r"\infty", "E": r"\mathbb{E}"}
_OPERATORS = ("softmax", "Var", "Cov", "tr", "diag", "div", "mean", "rank", "cosh")
_SIGNS = {
    "<=": r"\le ",
    ">=": r"\ge ",
    "<-": r"\leftarrow ",
    "->": r"\to ",
    "~": r"\sim ",
    "...": r"\dots ",
    "|": r"\vert ",
    "*": r"\cdot ",
    ";": r";\;",
}
_TOKENS = re.compile(
    r"(?P<gap> {2,}(?![ =]))|(?P<space> +)|(?P<number>\d+(\.\d+)?)|(?P<name>[A-Za-z]+)"
    r"|(?P<sign><=|>=|<-|->|\.\.\.|[~|*;])|(?P<product>(?<=\w)\.(?=[\w(]))"
    r"|(?P<script>[_^])|(?P<plain>[-+=/(),.:<>\[\]!'])"
)
_CLOSING = {"(": ")", "{": "}"}


def latex(formula: str) -> str:
    """LaTeX of one line of a docstring's formula.

    Raises:
      ValueError: something in it does not belong to the grammar, a bracket is not closed, or it
        begins with prose. What stands three spaces to the right may be prose.
    """
    first, *others = re.split(r" {3,}(?![ =])", formula.strip())
    if _is_prose(first):
        raise ValueError(f"{formula!r} begins with prose")
    rest = [rf"\text{{{each}}}" if _is_prose(each) else _read(each) for each in others]
    return r" \qquad ".join([_read(first), *rest])


def _is_prose(text: str) -> bool:
    words = re.findall(r"(?<![_^A-Za-z])[A-Za-z]{2,}(?![_^(A-Za-z])", text)
    return 3 * len("".join(word for word in words if not _symbol(word))) > len(text)


def _read(text: str) -> str:
    return _Reader(text).all()


class _Reader:
    def __init__(self, text: str) -> None:
        self.text, self.place = text, 0

    def all(self) -> str:
        parts, words = [], []
        while self.place < len(self.text):
            kind, part = self._next()
            if kind == "word":
                words.append(part)
                continue
            if words and kind == "space" and self.text[self.place : self.place + 1].isalpha():
                continue
            if words:
                parts.append(_text(words))
                words = []
            parts.append(part)
        return "".join([*parts, _text(words)]).strip()

    def _next(self) -> tuple[str, str]:
        found = _TOKENS.match(self.text, self.place)
        if found is None:
            raise ValueError(f"{self.text!r}: {self.text[self.place]!r} is in no formula")
        self.place = found.end()
        kind, text = str(found.lastgroup), found[0]
        if kind == "name":
            return self._name(text)
        if kind == "script":
            return kind, self._script(text)
        return kind, {
            "gap": r"\qquad ",
            "product": r"\cdot ",
            "sign": _SIGNS.get(text, ""),
        }.get(kind, text)

    def _name(self, name: str) -> tuple[str, str]:
        if name == "sqrt" and self.text.startswith("(", self.place):
            return "root", rf"\sqrt{{{_read(self._bracket())}}}"
        for accent in ("bar", "hat"):  # alpha_bar_s, x_hat
            if re.match(rf"_{accent}(?![a-z])", self.text[self.place :]):
                self.place += len(accent) + 1
                return "symbol", rf"\{accent}{{{_symbol(name)}}}"
        if self.text.startswith("~", self.place) and len(name) == 1:
            self.place += 1
            return "symbol", rf"\tilde{{{name}}}"
        symbol = _symbol(name)
        followed = self.text[self.place : self.place + 1] in ("_", "^")
        if followed and not symbol:
            return "symbol", rf"\mathrm{{{name}}}"
        return ("symbol", symbol) if symbol else ("word", name)

    def _script(self, sign: str) -> str:
        if self.text[self.place : self.place + 1] in _CLOSING:
            inside = _read(self._bracket())
        else:
            found = re.compile(r"[*+]|-?[A-Za-z0-9]+(-[a-z]+)?").match(self.text, self.place)
            if found is None:
                raise ValueError(f"{self.text!r}: nothing follows {sign}")
            self.place = found.end()
            inside = _scripted(found[0])
        return rf"{sign}{{{inside}}}"

    def _bracket(self) -> str:
        """What stands in the bracket that opens here."""
        start, depth = self.place, 0
        for place in range(start, len(self.text)):
            depth += self.text[place] == self.text[start]
            depth -= self.text[place] == _CLOSING[self.text[start]]
            if depth == 0:
                self.place = place + 1
                return self.text[start + 1 : place]
        raise ValueError(f"{self.text!r}: a bracket is not closed")


def _scripted(text: str) -> str:
    """A sub- or superscript without brackets: 2t, mu, ij, held-out."""
    found = re.fullmatch(r"(-?\d*)([A-Za-z]*)", text)
    if text in ("*", "+"):
        return text
    if found is None or (found[2] and not (_symbol(found[2]) or len(found[2]) == 2)):
        return rf"\mathrm{{{text}}}"
    return found[1] + (_symbol(found[2]) or found[2])


def _symbol(name: str) -> str:
    """LaTeX of a name that is a symbol, a differential or an operator; nothing of a word."""
    if name in _OPERATORS:
        return rf"\operatorname{{{name}}} "
    if name in _SYMBOLS:
        return _SYMBOLS[name] + ("" if name == "E" else " ")
    if name.startswith("d") and (name[1:] in _GREEK or len(name) == 2):
        return "d" + (_symbol(name[1:]) or name[1:])
    return name if len(name) == 1 else ""


def _text(words: list[str]) -> str:
    return rf"\text{{ {' '.join(words)} }}" if words else ""
