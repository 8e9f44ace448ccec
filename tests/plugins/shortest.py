"""Of the answers to one prompt the shortest gets 1, the longest 0: a teacher that has to see a batch at once."""

from collections import defaultdict

from teachers.types import Answer, Judgment, SignalKind


class Shortest:
    signals = (SignalKind.JUDGMENT,)

    def __init__(self, name, options, tools):
        self.unit = options.get("unit", "tokens")

    def score(self, requests):
        groups = defaultdict(list)
        for request in requests:
            groups[request.group_id].append(request)
        for group in groups.values():
            lengths = [self.length(request) for request in group]
            span = max(lengths) - min(lengths)
            for request, length in zip(group, lengths, strict=True):
                score = (max(lengths) - length) / span if span else 1.0
                yield request.request_id, Answer(Judgment(score))

    def length(self, request):
        return len(request.token_ids if self.unit == "tokens" else request.completion)
