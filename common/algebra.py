r"""Exact arithmetic with letters: sums, products, quotients, powers and roots.

A value is a quotient of two sums, as a pair. A sum is a dictionary from products to their
coefficients, which are exact fractions. A product is a set of atoms with their exponents:

    3x^2 - \sqrt{12}   is   {x^2: 3, 3^(1/2): -2}   over   {1: 1}

An atom is a prime number, or a text for a letter (also \pi, and 2^n), or a tuple for what has
laws of its own, of which nothing is known here: \sin x, a root of a sum, n!.

`common/expressions.py` reads LaTeX into such values and compares them.
"""

import math
from fractions import Fraction

# Limits for the text of a model. Beyond them a value is not computed.
MOST_TERMS, MOST_BITS = 300, 2500
LARGEST_ROOT = 10**8  # what stands below a root is divided into primes

NOTHING = frozenset()  # the product of no factors, which is 1
ONE = {NOTHING: Fraction(1)}


class Unreadable(Exception):
    """The text is no expression, or one that is not known here."""


# ---------------------------------------------------------------- sums and quotients


def number(x):
    return ({NOTHING: Fraction(x)} if x else {}), ONE


def single(name):
    return {frozenset([(name, Fraction(1))]): Fraction(1)}, ONE


def atoms(total):
    return {atom for product in total for atom, _ in product}


def multiply(a, b):
    """The product of two sums, written out."""
    if len(a) * len(b) > MOST_TERMS:
        raise Unreadable
    result = {}
    for one, c in a.items():
        for other, d in b.items():
            product, factor = _join(one, other)
            result[product] = result.get(product, 0) + c * d * factor
    for c in result.values():
        if max(c.numerator.bit_length(), c.denominator.bit_length()) > MOST_BITS:
            raise Unreadable
    return {product: c for product, c in result.items() if c}


def _join(one, other):
    """The product of two products, and the number that comes out of it."""
    exponents, factor = dict(one), Fraction(1)
    for atom, exponent in other:
        exponents[atom] = exponents.get(atom, 0) + exponent
    for atom, exponent in exponents.items():
        if isinstance(atom, int):  # 2^(3/2) is 2 times 2^(1/2)
            whole = math.floor(exponent)
            if abs(whole) * atom.bit_length() > MOST_BITS:
                raise Unreadable
            factor, exponents[atom] = factor * Fraction(atom) ** whole, exponent - whole
        elif atom == "i" and exponent.denominator == 1:  # i^3 is -1 times i
            exponents[atom] = exponent % 2
            factor = -factor if exponent // 2 % 2 else factor
    return frozenset((atom, e) for atom, e in exponents.items() if e), factor


def times(x, y):
    return multiply(x[0], y[0]), multiply(x[1], y[1])


def over(x, y):
    above, below = y
    if not above:
        raise Unreadable  # a division by zero
    if len(above) == 1:  # one term moves to the other side of the line
        [(product, c)] = above.items()
        inverse, factor = _join(NOTHING, frozenset((atom, -e) for atom, e in product))
        return multiply(multiply(x[0], below), {inverse: factor / c}), x[1]
    return multiply(x[0], below), multiply(x[1], above)


def add(x, y):
    if x[1] != y[1]:
        x, y = ((multiply(p[0], q[1]), multiply(p[1], q[1])) for p, q in ((x, y), (y, x)))
    total = {product: x[0].get(product, 0) + y[0].get(product, 0) for product in {*x[0], *y[0]}}
    return {product: c for product, c in total.items() if c}, x[1]


def constant(value):
    """The value as a fraction if it is one, or else None."""
    above, below = value
    if {*above, *below} <= {NOTHING}:
        return above.get(NOTHING, Fraction(0)) / below[NOTHING]
    return None


def text_of_product(product):
    return " ".join(sorted(f"{atom}^{exponent}" for atom, exponent in product))


def text_of(value):
    """The same text for the same value, to tell sin(x+1) and sin(1+x) from sin(x)."""
    first = value[1][min(value[1], key=text_of_product)]
    sides = (sorted(f"{c / first} {text_of_product(p)}" for p, c in side.items()) for side in value)
    return " / ".join(map(" + ".join, sides))


# ---------------------------------------------------------------- powers and roots


def power(base, exponent):
    if len(base[0]) == len(base[1]) == 1 and base[1] == ONE:
        return _power_of_product(base, exponent)
    fixed = constant(exponent)
    if fixed is None or fixed.denominator != 1:
        name = ("root", text_of(base))
        return _power_of_product(single(name), exponent)
    if abs(fixed) > 12:
        raise Unreadable
    result = number(1)
    for _ in range(abs(int(fixed))):
        result = times(result, base)
    return result if fixed >= 0 else over(number(1), result)


def _power_of_product(base, exponent):
    [(product, c)] = base[0].items()
    fixed = constant(exponent)

    # A whole exponent: (3x)^2 is 9x^2.
    if fixed is not None and fixed.denominator == 1:
        n = int(fixed)
        if abs(n) * max(c.numerator.bit_length(), c.denominator.bit_length()) > MOST_BITS:
            raise Unreadable
        joined, factor = _join(NOTHING, frozenset((atom, e * n) for atom, e in product))
        return {joined: factor * c**n}, ONE

    # A square root of a negative number has the factor i. Other such powers are not read.
    result = number(1)
    if c < 0:
        if fixed is None or fixed.denominator != 2:
            raise Unreadable
        result, c = _power_of_product(single("i"), number(fixed.numerator)), -c
    # What is positive may be taken out of the root: primes and \pi.
    positive = [(atom, e) for atom, e in product if isinstance(atom, int) or atom == "\\pi"]
    others = [pair for pair in product if pair not in positive]
    factors = [*_primes(c).items(), *positive]
    # One letter stays a letter. More are one thing: \sqrt{x^2} is not x where x < 0.
    if len(others) == 1 and others[0][1] == 1:
        factors += others
    elif others:
        factors.append((("root", text_of_product(others)), 1))
    for atom, e in factors:
        result = times(result, _power_of_atom(atom, e, exponent))
    return result


def _power_of_atom(atom, e, exponent):
    r"""(atom^e)^exponent. 2^{n-1} becomes 2^{-1} times (2^n)^1: the atom 2^n is a text."""
    result = number(1)
    if exponent[1] != ONE:
        name = ("power", str(atom), text_of(exponent))
        return _power_of_product(single(name), number(e))
    for product, c in exponent[0].items():
        name = f"{atom}^({text_of_product(product)})" if product else atom
        # e^{i\pi} and e^{\ln 2} are not independent of the other numbers.
        if product and any(isinstance(a, tuple) or a == "i" for a in [atom, *dict(product)]):
            name = ("power", name)
        joined, factor = _join(NOTHING, frozenset([(name, e * c)]))
        result = times(result, ({joined: factor}, ONE))
    return result


def _primes(c):
    """{prime: exponent} of a positive fraction."""
    factors = {}
    for n, sign in ((c.numerator, 1), (c.denominator, -1)):
        if n > LARGEST_ROOT:
            raise Unreadable
        p = 2
        while n > 1:
            if p * p > n:
                p = n
            while n % p == 0:
                factors[p], n = factors.get(p, 0) + sign, n // p
            p += 1
    return factors
