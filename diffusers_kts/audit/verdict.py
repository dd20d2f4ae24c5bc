"""What an audit's figures allow to say, in plain words."""

from collections.abc import Mapping

from scipy.stats import norm

from ..memorization.fraction import paired_difference
from .checkpoints import BASE
from .copies import in_words
from .measures import Findings
from .sampling import CONTROLS

COMPARISONS = 2 + len(CONTROLS)
LEVEL = 0.05 / COMPARISONS
SHORT = {"euler": "plain", "kts": "KTS", "touchdown": "touchdown"}


def verdict(found: Mapping[str, Findings], frechet_space: str) -> list[str]:
    """Sentences for the reader. Significant means: exact McNemar test on the pairs of the same noises, p below .05 after
    Bonferroni's correction for the comparisons made here."""
    plain, kts, touchdown = found["euler"], found["kts"], found["touchdown"]
    sentences = [f"Plain sampling repeats the training set in {_counted(plain)}.{_transformed(plain)}"]
    sentences.append(_change("KTS", kts))
    if kts.against_plain and kts.against_plain.p_value < LEVEL and kts.against_plain.difference < 0:
        sentences += _against_controls(found)
    sentences.append(
        f"{_change('Touchdown', touchdown)} It makes {touchdown.network_calls} network calls, plain sampling "
        f"{plain.network_calls}."
    )
    distances = ", ".join(f"{label} {found[name].frechet_distance:.4g}" for name, label in SHORT.items())
    sentences.append(f"In quality, by Frechet distance in {frechet_space} (lower is better, no interval): {distances}.")
    sentences.append(_trajectories(plain))
    return sentences


def _change(name: str, findings: Findings) -> str:
    change = findings.against_plain
    assert change is not None
    figures = f"{100 * change.difference:+.1f} points, 95 % interval {100 * change.low:+.1f} to {100 * change.high:+.1f}"
    figures += f"; exact test, p = {change.p_value:.2g} against {LEVEL:.2g}"
    if change.p_value >= LEVEL:
        return f"{name} shows no significant difference: {_share(findings)} ({figures})."
    return f"{name} {'lowers' if change.difference < 0 else 'raises'} that share to {_share(findings)} ({figures})."


def _against_controls(found: Mapping[str, Findings]) -> list[str]:
    """What each control says about a fall of F_mem under KTS."""
    kts, even, noise, whole = (found[name] for name in ("kts", *CONTROLS))
    shape = (
        "significantly below it, so its shape counts"
        if _below(kts, even)
        else "not significantly below it, so its shape may add nothing"
    )
    blur = (
        "significantly below it, so noise does not explain it all"
        if _below(kts, noise)
        else "not significantly below it, so noise may explain it all"
    )
    outlasts = (
        "still significantly below plain sampling, so not all of the fall comes from stopping early"
        if _below(whole, found["euler"])
        else "not significantly below plain sampling: stopping early, which leaves noise, may be all of the fall"
    )
    return [
        f"The same net displacement spread evenly leaves {_share(even)}; KTS is {shape}.",
        f"Noise as strong as KTS's change, added to the plain sample, leaves {_share(noise)}; KTS is {blur}.",
        f"Moved on by its missing displacement, KTS is at {_share(whole)}, {outlasts}.",
    ]


def _below(a: Findings, b: Findings) -> bool:
    change = paired_difference(a.memorization.is_memorized, b.memorization.is_memorized)
    return change.p_value < LEVEL and change.difference < 0


def _trajectories(plain: Findings) -> str:
    if not plain.separations:
        return "Whether trajectories tell memorized samples cannot be said: plain sampling has only one of the two kinds."
    name, best = max(plain.separations.items(), key=lambda item: abs(item[1].auc - 0.5))
    tried = len(plain.separations)
    low, high = best.interval(float(norm.isf(0.025 / tried)))
    figures = f"AUC {best.auc:.2f}, interval {low:.2f} to {high:.2f}, corrected for {tried} statistics tried"
    if low <= 0.5 <= high:
        return f"No statistic of the plain trajectories tells memorized samples from others (best: {name}, {figures})."
    kind = "higher" if best.auc > 0.5 else "lower"
    return f"In plain trajectories, {name} tells memorized samples best: it is {kind} in them ({figures})."


def last_below(found: Mapping[str, Findings], limit: float) -> str | None:
    """The last checkpoint whose 95 % interval of F_mem lies below the limit; None if there is none."""
    below = [name for name, findings in found.items() if findings.f_mem.high < limit and name != BASE]
    return below[-1] if below else None


def series_verdict(found: Mapping[str, Findings], limit: float, frechet_space: str) -> list[str]:
    """Sentences on checkpoints, in the order of their steps."""
    last, trained = last_below(found, limit), {name: f for name, f in found.items() if name != BASE}
    sentences = []
    if last is None:
        sentences.append(f"No checkpoint is shown to be below the limit: no interval of F_mem ends below {limit:.3g}.")
    else:
        sentences.append(
            f"The last checkpoint below the limit of {limit:.3g} is {last}: it repeats the training set in "
            f"{_counted(trained[last])}.{_transformed(trained[last])}"
        )
        names = [*trained]
        if above := [name for name in names[: names.index(last)] if trained[name].f_mem.high >= limit]:
            sentences.append(
                f"{above[-1].capitalize()} before it is above the limit ({_counted(trained[above[-1]])}), so the order may be "
                "chance: draw more samples."
            )
    if BASE in found:
        sentences.append(f"The base model repeats it in {_counted(found[BASE])}.")
    worst = max(trained, key=lambda name: trained[name].f_mem.count)
    if worst != last:
        sentences.append(f"Most is repeated by {worst}: {_counted(trained[worst])}.")
    best = min(trained, key=lambda name: trained[name].frechet_distance)
    quality = f"Frechet distance in {frechet_space} (lower is better, no interval) is lowest for {best}"
    sentences.append(
        f"{quality}, {trained[best].frechet_distance:.4g}"
        + ("." if last in (None, best) else f"; for {last} it is {trained[last].frechet_distance:.4g}.")
    )
    return sentences


def _transformed(findings: Findings) -> str:
    """A further sentence on copies that are not equal in their pixels, where these were looked for."""
    if findings.copies is None:
        return ""
    return f" Copies in {findings.copies['transformed']['space']}: {in_words(findings.copies['transformed']['samples'])}."


def _counted(findings: Findings) -> str:
    f = findings.f_mem
    return f"{f.count} of its {f.n} samples: {f.in_words}"


def _share(findings: Findings) -> str:
    return f"{findings.f_mem.fraction:.1%}"
