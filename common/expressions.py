r"""Reads an expression in LaTeX, and compares two of them exactly.

`compare` says True, False, or None where only math-verify can tell. This is faster than
math-verify, and it knows that 1/2^98 is not 1/2^99: math-verify rounds.

What is read: numbers, letters with an index, + - / ^ !, products, brackets, fractions, roots,
binomials, and the usual functions. The text of a model is never executed.
"""

import math
import re
from fractions import Fraction

from common.algebra import (
    ONE,
    Unreadable,
    add,
    atoms,
    constant,
    multiply,
    number,
    over,
    power,
    single,
    text_of,
    text_of_product,
    times,
)

# Limits for the text of a model. Beyond them an expression is not read.
LONGEST, DEEPEST = 300, 25

TOKEN = re.compile(r"[0-9]+\.?[0-9]*|\.[0-9]+|\\[a-zA-Z]+|\S")
NAMES = set(
    r"\alpha \beta \gamma \delta \epsilon \varepsilon \zeta \eta \theta \iota \kappa \lambda \mu"
    r" \nu \xi \pi \rho \sigma \tau \phi \varphi \chi \psi \omega \Gamma \Delta \Theta \Lambda"
    r" \Sigma \Phi \Psi \Omega \hbar \ell \infty".split()
)
FUNCTIONS = set(
    r"\sin \cos \tan \cot \sec \csc \arcsin \arccos \arctan \sinh \cosh \tanh \ln \log".split()
)
CLOSING = {"(": ")", "{": "}", "[": "]", "\\lfloor": "\\rfloor", "\\lceil": "\\rceil"}


def compare(said, gold):
    """True or False, or None if only math-verify can tell."""
    try:
        return compare_strictly(said, gold)
    # No text of a model may end a run of hours, not even through a mistake in this file. (The tests
    # ask compare_strictly, so that they see such a mistake.)
    except (ArithmeticError, ValueError, TypeError, AttributeError):
        return None


def compare_strictly(said, gold):
    try:
        # An equation l = r is l - r = 0. Its two sides may be exchanged or doubled.
        if "=" in said or "=" in gold:
            (a, b), (c, d) = map(_monic, map(_equation, (said, gold)))
        else:
            (a, b), (c, d) = map(_value, (said, gold))
        left, right = multiply(a, d), multiply(c, b)
    except (Unreadable, RecursionError):
        return None
    if left == right:
        return True
    # An atom that is a tuple stands for something with laws of its own.
    known = not any(isinstance(atom, tuple) for atom in atoms(left) | atoms(right))
    return False if known else None


def _value(text):
    if len(text) > LONGEST:
        raise Unreadable
    reader = _Reader(text)
    value = reader.sum()
    if reader.next() is not None:
        raise Unreadable
    return value


def _equation(text):
    sides = text.split("=")
    if len(sides) != 2:
        raise Unreadable
    return add(_value(sides[0]), times(_value(sides[1]), number(-1)))


def _monic(value):
    """The equation value = 0, without its denominators, divided by its first coefficient."""
    above, _ = value
    if not above:
        raise Unreadable
    # y = 2/x has the term 2 x^{-1}. The power of x that it lacks goes to all terms: xy = 2.
    lacking = {}
    for product in above:
        for atom, exponent in product:
            lacking[atom] = max(lacking.get(atom, 0), -exponent)
    above = multiply(above, {frozenset((a, e) for a, e in lacking.items() if e): Fraction(1)})
    first = above[min(above, key=text_of_product)]
    return {product: c / first for product, c in above.items()}, ONE


class _Reader:
    """Reads an expression from left to right. Each method reads one kind of part."""

    def __init__(self, text):
        self.tokens, self.at, self.depth = TOKEN.findall(text), 0, 0

    def next(self):
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def take(self, *wanted):
        """The next token if it is one of these, or else None."""
        token = self.next()
        if token in wanted:
            self.at += 1
            return token
        return None

    def sum(self):
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable
        total = self.product(self.take("-", "+"))
        while sign := self.take("+", "-"):
            total = add(total, self.product(sign))
        self.depth -= 1
        return total

    def product(self, sign=None):
        value, divided = self.mixed_number() or self.factor(), False
        while True:
            if self.take("\\cdot", "\\times", "*"):
                value, divided = times(value, self.signed_factor()), False
            elif self.take("/", "\\div"):
                value, divided = over(value, self.signed_factor()), True
            elif self.starts_a_factor():
                # 1/2x may be (1/2)x or 1/(2x).
                if divided:
                    raise Unreadable
                value = times(value, self.factor())
            else:
                return times(value, number(-1)) if sign == "-" else value

    def signed_factor(self):
        negative = self.take("-")
        value = self.factor()
        return times(value, number(-1)) if negative else value

    def starts_a_factor(self):
        token = self.next()
        if token is None or token in CLOSING or token in NAMES or token in FUNCTIONS:
            return token is not None
        # (n-2) 2^n is a product. 2 2 is not.
        if self.tokens[self.at - 1] == ")" and re.match("[0-9]", token):
            return True
        return token in ("\\frac", "\\sqrt", "\\binom", "\\exp") or token.isalpha()

    def mixed_number(self):
        r"""1\frac{4}{5} is a sum. No other number stands right before a fraction of numbers."""
        digits = self.tokens[self.at : self.at + 8]
        shape = ["[0-9]+", r"\\frac", "{", "[0-9]+", "}", "{", "[0-9]+", "}"]
        if len(digits) < 8 or not all(map(re.fullmatch, shape, digits)) or int(digits[6]) == 0:
            return None
        self.at += 8
        return number(int(digits[0]) + Fraction(int(digits[3]), int(digits[6])))

    def factor(self):
        value = self.base()
        while True:
            if self.take("^"):
                value = power(value, self.exponent())
            elif self.take("!"):
                value = self.factorial(value)
            else:
                return value

    def exponent(self):
        if self.next() in ("{", "("):
            return self.group()
        negative = self.take("-")
        value = self.base()
        return times(value, number(-1)) if negative else value

    def group(self):
        """What stands in brackets."""
        opening = self.take(*CLOSING)
        if opening is None:
            raise Unreadable
        value = self.sum()
        if not self.take(CLOSING[opening]):
            raise Unreadable
        if opening in ("\\lfloor", "\\lceil"):
            fixed = constant(value)
            if fixed is None:
                return single((opening, text_of(value)))
            return number((math.floor if opening == "\\lfloor" else math.ceil)(fixed))
        return value

    def base(self):
        token = self.next()
        if token is None:
            raise Unreadable
        if token in CLOSING:
            return self.group()
        self.at += 1
        if re.search("[0-9]", token):
            if len(token) > 100 or re.match(r"[0-9.]", self.next() or ""):
                raise Unreadable
            return number(Fraction(token.removesuffix(".")))
        if token == "\\frac":
            return over(self.group(), self.group())
        if token == "\\sqrt":
            return self.root()
        if token == "\\binom":
            return self.binomial(self.group(), self.group())
        if token == "\\exp":
            return power(single("e"), self.group())
        if token in FUNCTIONS:
            return self.function(token)
        if token in NAMES or re.fullmatch("[A-Za-z]", token):
            return self.name(token)
        raise Unreadable

    def root(self):
        degree = Fraction(2)
        if self.next() == "[":
            degree = constant(self.group())
        value = self.group()
        if not degree or degree.denominator != 1:
            raise Unreadable
        fixed = constant(value)
        if fixed is not None and fixed < 0 and degree % 2:  # the cube root of -8 is -2
            return times(number(-1), power(number(-fixed), number(1 / degree)))
        return power(value, number(1 / degree)) if value[0] else value

    def name(self, token):
        """A letter with its index and its primes, or a function like u(t) or I(0)."""
        if self.take("_"):
            token += "_" + self.raw()
        while self.take("'"):
            token += "'"
        # u(t) and I(0) are read as functions, n(n+1) as a product.
        inside = self.tokens[self.at : self.at + 3]
        if token[0] != "\\" and re.fullmatch(r"\((?:[a-z]|[0-9]+)\)", "".join(inside)):
            self.at += 3
            return single(("function", token + "".join(inside)))
        return single(token)

    def raw(self):
        """The characters of one token or of a group, without spaces and the outer braces."""
        start, depth = self.at, 0
        while True:
            token = self.next()
            if token is None:
                raise Unreadable
            self.at += 1
            depth += (token == "{") - (token == "}")
            if depth == 0:
                return re.sub(r"^\{(.*)\}$", r"\1", "".join(self.tokens[start : self.at]))

    def function(self, token):
        r"""\sin x, \sin^2(2x), \log_{10} 5. An argument without brackets is one product."""
        exponent = number(1)
        name = token
        while True:
            if self.take("_"):
                name += "_" + self.raw()
            elif self.take("^"):
                exponent = self.exponent()
            else:
                break
        if exponent == number(-1):
            raise Unreadable  # \sin^{-1} is the inverse function
        if self.next() in ("(", "{", "["):
            value = self.group()
        else:
            value = self.factor()
            while self.starts_a_factor() and self.next() not in FUNCTIONS | {"("}:
                value = times(value, self.factor())
        return power(single((name, text_of(value))), exponent)

    def factorial(self, value):
        n = constant(value)
        if n is None:
            return single(("!", text_of(value)))
        if n.denominator != 1 or not 0 <= n <= 500 or self.next() == "!":
            raise Unreadable
        return number(math.factorial(int(n)))

    def binomial(self, above, below):
        n, k = constant(above), constant(below)
        if n is None or k is None:
            return single(("binomial", text_of(above), text_of(below)))
        if n.denominator != 1 or k.denominator != 1 or not 0 <= k <= n <= 500:
            raise Unreadable
        return number(math.comb(int(n), int(k)))
