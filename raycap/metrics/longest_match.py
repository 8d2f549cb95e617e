"""Longest-match scanning with a lazily built DFA.

Python's `re` takes the first alternative that matches; a lexer takes the *longest* match of any rule and, among equals,
the earliest rule. This module holds that machinery and knows nothing of captions: patterns become one NFA (Thompson's
construction), its DFA states are made when a text first needs them (subset construction), and characters that no rule
distinguishes share one symbol, so memory is bounded by the grammar and not by the texts seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock

from raycap.metrics.patterns import Chain, Chars, Choice, Pattern, Repeat

_NO_RULE, _DEAD = -1, -2


class _Nfa:
    """Nodes with empty edges and character edges; each character class has an index in `classes`."""

    def __init__(self) -> None:
        self.empty: list[list[int]] = []
        self.edges: list[list[tuple[int, int]]] = []
        self.accepts: dict[int, int] = {}
        self.classes: list[Chars] = []
        self._class_index: dict[int, int] = {}

    def node(self) -> int:
        self.empty.append([])
        self.edges.append([])
        return len(self.empty) - 1

    def add(self, pattern: Pattern, start: int) -> int:
        """Append `pattern` after `start`; the node where it ends."""
        if isinstance(pattern, Chars):
            end = self.node()
            self.edges[start].append((self._index_of(pattern), end))
            return end
        if isinstance(pattern, Chain):
            for part in pattern.parts:
                start = self.add(part, start)
            return start
        if isinstance(pattern, Choice):
            end = self.node()
            for option in pattern.options:
                self.empty[self.add(option, start)].append(end)
            return end
        assert isinstance(pattern, Repeat)
        return self._add_repeat(pattern, start)

    def _add_repeat(self, pattern: Repeat, start: int) -> int:
        for _ in range(pattern.low):
            start = self.add(pattern.body, start)
        if pattern.high is None:
            # a node of its own, so that the loop back cannot re-enter what leads here
            loop = self.node()
            self.empty[start].append(loop)
            self.empty[self.add(pattern.body, loop)].append(loop)
            end = self.node()
            self.empty[loop].append(end)
            return end
        end = self.node()
        for _ in range(pattern.high - pattern.low):
            self.empty[start].append(end)
            start = self.add(pattern.body, start)
        self.empty[start].append(end)
        return end

    def _index_of(self, chars: Chars) -> int:
        if id(chars) not in self._class_index:
            self._class_index[id(chars)] = len(self.classes)
            self.classes.append(chars)
        return self._class_index[id(chars)]

    def closure(self, nodes: Iterable[int]) -> frozenset[int]:
        """The nodes reachable over empty edges that matter: those with character edges or an accepted rule."""
        seen, stack = set(nodes), list(nodes)
        while stack:
            for target in self.empty[stack.pop()]:
                if target not in seen:
                    seen.add(target)
                    stack.append(target)
        return frozenset(node for node in seen if self.edges[node] or node in self.accepts)


class _State(dict[int, "_State"]):
    """A DFA state: symbol → next state, filled on first use; `rule` is what it accepts."""

    __slots__ = ("automaton", "nodes", "rule")

    def __init__(self, automaton: Automaton, nodes: frozenset[int]) -> None:
        super().__init__()
        self.automaton, self.nodes = automaton, nodes
        accepted = [automaton.nfa.accepts[node] for node in nodes if node in automaton.nfa.accepts]
        self.rule = min(accepted) if accepted else _NO_RULE if nodes else _DEAD

    def __missing__(self, symbol: int) -> _State:
        following = self.automaton.follow(self, symbol)
        self[symbol] = following
        return following


class _Symbols(dict[str, int]):
    """Character → symbol; two characters in the same classes of the grammar are one symbol."""

    def __init__(self, classes: list[Chars]) -> None:
        super().__init__()
        self._classes = classes
        self._numbers: dict[tuple[int, ...], int] = {}
        self._lock = Lock()  # reward components may tokenise in several threads
        self.members: list[frozenset[int]] = []

    def __missing__(self, char: str) -> int:
        signature = tuple(index for index, one in enumerate(self._classes) if one.contains(char))
        with self._lock:
            if signature not in self._numbers:
                self.members.append(frozenset(signature))
                self._numbers[signature] = len(self._numbers)
            number = self._numbers[signature]
        if char <= "\uffff":  # one entry for each character beyond the basic plane would have no bound
            self[char] = number
        return number


class Automaton:
    """The lazily determinised union of several patterns; pattern i accepts as rule i."""

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self.nfa = _Nfa()
        start = self.nfa.node()
        for rule, pattern in enumerate(patterns):
            begin = self.nfa.node()
            self.nfa.empty[start].append(begin)
            self.nfa.accepts[self.nfa.add(pattern, begin)] = rule
        self.symbols = _Symbols(self.nfa.classes)
        self._states: dict[frozenset[int], _State] = {}
        self.start = self._state(self.nfa.closure([start]))

    def _state(self, nodes: frozenset[int]) -> _State:
        known = self._states.get(nodes)
        return known if known is not None else self._states.setdefault(nodes, _State(self, nodes))

    def follow(self, state: _State, symbol: int) -> _State:
        """The state after `symbol` (subset construction)."""
        members = self.symbols.members[symbol]
        targets = {to for node in state.nodes for index, to in self.nfa.edges[node] if index in members}
        return self._state(self.nfa.closure(targets))

    def encode(self, text: str) -> list[int]:
        """The symbols of a text, one for each character."""
        return list(map(self.symbols.__getitem__, text))

    def longest(self, symbols: Sequence[int], begin: int) -> tuple[int, int]:
        """(rule, end) of the longest match that starts at `begin`; rule −1 when nothing matches."""
        state, best, end = self.start, _NO_RULE, begin
        for position in range(begin, len(symbols)):
            state = state[symbols[position]]
            rule = state.rule
            if rule != _NO_RULE:
                if rule == _DEAD:
                    break
                best, end = rule, position + 1
        return best, end

    def ends(self, symbols: Sequence[int], begin: int, limit: int) -> list[int]:
        """Every position up to `limit` where some pattern that starts at `begin` can end, ascending."""
        state, found = self.start, []
        for position in range(begin, limit):
            state = state[symbols[position]]
            if state.rule == _DEAD:
                break
            if state.rule >= 0:
                found.append(position + 1)
        return found


@dataclass(frozen=True)
class Rule:
    """What a lexer recognises.

    `head` is the token; `ahead`, when given, must follow and counts for the length of the match, but is scanned again.
    `emit` turns the matched text into the token's text (None: no token). The last `give_back` characters of the head
    are left for the next token.
    """

    head: Pattern
    ahead: Pattern | None = None
    emit: Callable[[str], str | None] = str
    give_back: int = 0


class Lexer:
    """Cuts a text by the longest match of any rule, the earliest rule among equals."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = tuple(rules)
        self._all = Automaton([rule.head if rule.ahead is None else rule.head + rule.ahead for rule in rules])
        self._parts: dict[int, tuple[Automaton, Automaton]] = {}

    def tokens(self, text: str, limit: int) -> Iterator[str]:
        """The tokens that start before position `limit`; what follows it only serves as context.

        A character that no rule matches is skipped.
        """
        symbols, position = self._all.encode(text), 0
        while position < limit:
            number, end = self._all.longest(symbols, position)
            if number == _NO_RULE:
                position += 1
                continue
            rule = self._rules[number]
            if rule.ahead is not None:
                end = self._cut(number, text, position, end)
            end -= rule.give_back
            token = rule.emit(text[position:end])
            if token is not None:
                yield token
            position = end

    def _cut(self, number: int, text: str, begin: int, end: int) -> int:
        """Where the head ends: as far right as the rest, up to `end`, is still a whole match of `ahead`."""
        if number not in self._parts:
            rule = self._rules[number]
            assert rule.ahead is not None
            self._parts[number] = Automaton([rule.head]), Automaton([rule.ahead])
        head, ahead = self._parts[number]
        piece = text[begin:end]
        after = ahead.encode(piece)
        for cut in reversed(head.ends(head.encode(piece), 0, len(piece))):
            if len(piece) in ahead.ends(after, cut, len(piece)):
                return begin + cut
        raise AssertionError("a rule matched as a whole but not in its parts")
