"""How long outputs will be: streaming histograms with back-off, learned only from requests that ended.

Input and output lengths are practically uncorrelated on production traces, so guessing the output from the
prompt is uninformative; who asks, of which model, by which route, is not. Each such key has a histogram. A key
that was seldom seen borrows from the model's, and that from everybody's:

    estimate of a key = its own samples + `PRIOR_SAMPLES` samples shaped as its parent's estimate

which is the posterior mean of a Dirichlet prior with the parent as base measure. Old samples fade, so that
drift is followed.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import accumulate, repeat
from operator import add, mul, truediv

from weighbridge.cost.weight import OutputEstimate

#: Bins per octave: a bin is at most 1/8 as wide as its lower edge.
_SUB = 8
_SUB_BITS = 3
#: Outputs up to 2^20 tokens; longer ones count as that.
_OCTAVES = 20
NUM_BINS = _SUB + (_OCTAVES - _SUB_BITS) * _SUB

#: How many samples of its own a key needs to count as much as its parent.
PRIOR_SAMPLES = 16.0
#: Samples that a histogram remembers: each new one fades all earlier by 1/MEMORY.
MEMORY = 1000.0
_GROWTH = 1.0 / (1.0 - 1.0 / MEMORY)
#: Keys kept; the one unused longest is forgotten first and starts again from its model's.
MAX_KEYS = 4096


def bin_of(tokens: int) -> int:
    """Index of the bin that holds outputs of `tokens`: exact below 8, then 8 bins per octave."""
    if tokens < _SUB:
        return max(tokens, 0)
    shift = min(tokens.bit_length(), _OCTAVES) - _SUB_BITS - 1
    return min(shift * _SUB + (tokens >> shift), NUM_BINS - 1)


def bin_edge(index: int) -> int:
    """Smallest output of a bin; of `NUM_BINS`, the end of the last one."""
    if index < _SUB:
        return index
    shift = index // _SUB - 1
    return (_SUB + index % _SUB) << shift


EDGES = tuple(bin_edge(index) for index in range(NUM_BINS + 1))
_MIDDLES = tuple((EDGES[i] + EDGES[i + 1] - 1) / 2 for i in range(NUM_BINS))


class LengthCurve:
    """An immutable length distribution that answers in O(log bins). Inside a bin, lengths are spread evenly.

    A gateway makes many of them, some only to be the prior of others: sums are formed without a step of Python for
    each bin, and those that only answers need when something is asked.
    """

    __slots__ = ("_at_least", "_cut", "_sums_from", "_weights", "total")

    def __init__(self, weights: list[float]) -> None:
        """`weights`: how often each bin was seen, `NUM_BINS` of them."""
        self._weights = tuple(weights)
        self._at_least = _suffix_sums(weights)
        self._sums_from: list[float] | None = None
        self.total = self._at_least[0]
        self._cut = (-1, 0.0, 0.0)  # the last `max_tokens` asked for, and its tail: it is mostly the same

    @property
    def weights(self) -> tuple[float, ...]:
        return self._weights

    def _tail(self, tokens: int) -> tuple[float, float]:
        """(weight, weight x length) of outputs of at least `tokens`."""
        index = bin_of(tokens)
        low, high = EDGES[index], EDGES[index + 1]
        share = min(max((high - tokens) / (high - low), 0.0), 1.0)
        weight = share * self._weights[index]
        length = (max(tokens, low) + high - 1) / 2
        sums = self._sums_from
        if sums is None:
            sums = self._sums_from = _suffix_sums(list(map(mul, self._weights, _MIDDLES)))
        return self._at_least[index + 1] + weight, sums[index + 1] + weight * length

    def mean(self, max_tokens: int) -> float:
        """Expected output, cut at `max_tokens`."""
        return self.remaining(0, max_tokens)

    def remaining(self, produced: int, max_tokens: int) -> float:
        """E[min(length, max_tokens) - produced | length > produced]: at least 1 while there is room."""
        room = max_tokens - produced
        if room <= 0:
            return 0.0
        weight, length = self._tail(produced + 1)
        if weight <= 1e-9 * self.total:
            # Longer than all that was ever seen: as much again as is out, the guess that errs by a factor.
            return float(min(max(produced, 1), room))
        cut = self._cut
        if cut[0] != max_tokens:
            cut = self._cut = (max_tokens, *self._tail(max_tokens))
        _, cut_weight, cut_length = cut
        expected = (length - cut_length + cut_weight * max_tokens) / weight - produced
        return min(max(expected, 1.0), float(room))

    def quantile(self, share: float, max_tokens: int) -> int:
        """Smallest length that `share` of the outputs do not exceed, cut at `max_tokens`."""
        above = (1.0 - share) * self.total
        low, high = 0, NUM_BINS - 1
        while low < high:  # the last bin with more than `above` at or beyond its edge
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._at_least[middle] > above else (low, middle - 1)
        weight = self._weights[low]
        beyond = (self._at_least[low] - above) / weight if weight > 0.0 else 1.0
        width = EDGES[low + 1] - EDGES[low]
        return max(min(EDGES[low] + round(beyond * (width - 1)), max_tokens), 1)

    def estimate(self, max_tokens: int, samples: int) -> OutputEstimate:
        if max_tokens <= 0:
            return OutputEstimate(0.0, 0, 0, samples, self)
        return OutputEstimate(
            mean=self.mean(max_tokens),
            p50=self.quantile(0.5, max_tokens),
            p90=self.quantile(0.9, max_tokens),
            samples=samples,
            law=self,
        )


def _suffix_sums(values: list[float]) -> list[float]:
    """The sum from each of `values` on, and 0 behind the last."""
    sums = list(accumulate(reversed(values), initial=0.0))
    sums.reverse()
    return sums


class LengthHistogram:
    """Counts per bin. A new sample weighs `1/(1 - 1/MEMORY)` times the one before, which fades all old ones."""

    __slots__ = ("_scale", "_total", "_weights", "samples")

    def __init__(self) -> None:
        self._weights = [0.0] * NUM_BINS
        self._total = 0.0
        self._scale = 1.0  # what a sample weighs now
        self.samples = 0

    def observe(self, tokens: int) -> None:
        """An output ended after `tokens`."""
        self.observe_bin(bin_of(tokens))

    def observe_bin(self, index: int) -> None:
        """An output ended within a bin."""
        self._scale *= _GROWTH
        self._weights[index] += self._scale
        self._total += self._scale
        self.samples += 1
        if self._scale > 1e12:
            self._weights = [weight / self._scale for weight in self._weights]
            self._total /= self._scale
            self._scale = 1.0

    def shrunk_to(self, prior: LengthCurve) -> LengthCurve:
        """Its samples, and `PRIOR_SAMPLES` more that are shaped as `prior`."""
        share = PRIOR_SAMPLES / prior.total if prior.total > 0.0 else 0.0
        own = map(truediv, self._weights, repeat(self._scale))
        return LengthCurve(list(map(add, own, map(mul, repeat(share), prior.weights))))


def _vague() -> LengthCurve:
    """Before anything ended: every octave from 16 to 1,023 tokens alike (median 128, mean about 250)."""
    low, high = bin_of(16), bin_of(1024)
    return LengthCurve([1.0 if low <= index < high else 0.0 for index in range(NUM_BINS)])


VAGUE = _vague()


class _Learned:
    """A histogram and the curve made of it, made anew once the samples have grown by a twentieth."""

    __slots__ = ("_due", "curve", "histogram")

    def __init__(self, prior: LengthCurve) -> None:
        self.histogram = LengthHistogram()
        self.curve = prior
        self._due = 1  # samples

    def observe_bin(self, index: int, prior: LengthCurve) -> None:
        histogram = self.histogram
        histogram.observe_bin(index)
        if histogram.samples >= self._due:
            self.curve = histogram.shrunk_to(prior)
            self._due = histogram.samples + min(max(1, histogram.samples // 20), 50)


class OutputLengths:
    """Expected output by (tenant, model, route), then by model, then overall.

    Bounded: at most `max_keys` keys, and as many models. Never told the length of a request before it ended:
    `observe` is its only source.
    """

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        self._max_keys = max_keys
        self._all = _Learned(VAGUE)
        self._models: OrderedDict[str, _Learned] = OrderedDict()
        self._keys: OrderedDict[tuple[str, str, str], _Learned] = OrderedDict()

    def observe(self, tenant: str, model: str, route: str, tokens: int) -> None:
        """A request of this key ended by itself (not by its client or a fault) after `tokens` of output."""
        index, everybody = bin_of(tokens), self._all
        everybody.observe_bin(index, VAGUE)
        by_model = self._models.get(model)
        if by_model is None:
            by_model = self._models[model] = _Learned(everybody.curve)
            if len(self._models) > self._max_keys:
                self._models.popitem(last=False)
        else:
            self._models.move_to_end(model)
        by_model.observe_bin(index, everybody.curve)
        key = (tenant, model, route)
        own = self._keys.get(key)
        if own is None:
            own = self._keys[key] = _Learned(by_model.curve)
            if len(self._keys) > self._max_keys:
                self._keys.popitem(last=False)
        else:
            self._keys.move_to_end(key)
        own.observe_bin(index, by_model.curve)

    def curve(self, tenant: str, model: str, route: str) -> LengthCurve:
        """The distribution that applies: the key's own, else its model's, else everybody's."""
        learned = self._keys.get((tenant, model, route)) or self._models.get(model) or self._all
        return learned.curve

    def estimate(self, tenant: str, model: str, route: str, max_tokens: int) -> OutputEstimate:
        """What to expect of a new request; `samples` are those of its own key."""
        own = self._keys.get((tenant, model, route))
        samples = own.histogram.samples if own else 0
        return self.curve(tenant, model, route).estimate(max_tokens, samples)

    def remaining(self, tenant: str, model: str, route: str, produced: int, max_tokens: int) -> float:
        """Expected output tokens still to come of a request that has `produced` so far."""
        return self.curve(tenant, model, route).remaining(produced, max_tokens)
