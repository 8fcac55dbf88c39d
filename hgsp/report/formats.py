"""Numbers as text, the same in every table and figure."""

from __future__ import annotations

MINUS = "\N{MINUS SIGN}"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def with_prefix(value: float, unit: str = "") -> str:
    """Format four significant digits with a decimal prefix: ``134.5 M``, ``215.4 MB``."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.4g} {prefix}{unit}"
    return f"{value:.4g} {unit}".rstrip()


def change(before: float, after: float) -> str:
    """Format a relative change in percent; empty if there is nothing to relate to."""
    return signed(100 * (after / before - 1)) + " %" if before else ""


def signed(value: float, digits: int = 1) -> str:
    """Format a number with its sign."""
    return f"{value:+.{digits}f}".replace("-", MINUS)


def times(before: float, after: float) -> str:
    """Format a factor; empty if there is nothing to relate to."""
    if not before:
        return ""
    return f"×{after / before:.2f}" if after < 1000 * before else f"×{significant(after / before)}"


def significant(value: float, digits: int = 3) -> str:
    """Format a number with at least ``digits`` significant digits, beyond a million in scientific notation."""
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        shown = f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:,.{digits}g}"
        return shown.replace("-", MINUS)
    return scientific(value, digits)


def scientific(value: float, digits: int = 3) -> str:
    """Format ``4.2×10⁻⁹``, and powers of ten without a factor."""
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    power = f"10{str(int(exponent)).translate(SUPERSCRIPTS)}"
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return power if mantissa == "1" else f"{mantissa.replace('-', MINUS)}×{power}"


def perplexity(value: float, stderr: float | None = None) -> str:
    """Format a perplexity with its standard error."""
    shown = f"{value:.2f}" if value < 1e5 else scientific(value)
    error = "" if stderr is None else f" ± {stderr:.2f}" if stderr < 1e5 else f" ± {scientific(stderr)}"
    return shown + error


def accuracy(value: float, stderr: float | None = None) -> str:
    """Format an accuracy with its standard error."""
    return f"{value:.4f}" if stderr is None else f"{value:.4f} ± {stderr:.4f}"


def seconds(value: float) -> str:
    """Format a duration."""
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def percent(fraction: float) -> str:
    """Format a fraction as a percentage."""
    return f"{100 * fraction:.1f} %"
