"""One request, from credential to settlement. Read this file first.

The eight stops:

    1 credential   headers -> Principal, before any body is read                     `open`, `_identify`
    2 body         up to the cap, a slot to run in, one peek at what we act on       `run`, `_admit`
                   the credential once more, if there was time for it to change      `start`
    3 model        known, and allowed for this caller                                `_admit`
    4 reserve      requests, tokens, concurrency, budget in one step; BEGIN          `_admit`
    5 order        what is healthy, in the policy's order                            `_order`
    6 exchange     try targets until one commits                                     `_try`, `failed`
    7 relay        `relay.attempt`: whole events go on as they came                  `commit`
    8 settle       exactly once: END, metrics, permit, log                           `_settle`

A flow is driven by callbacks alone: from the edge (body complete, client gone, deadline, write buffer full) and from its attempt, the
sink of an exchange. The commit point divides its life: before it nothing has been sent to the client and another target may be tried;
after it never.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from typing import TYPE_CHECKING, Final

import orjson
import structlog

from auth.address import client_address
from auth.credential import credential_of
from auth.errors import AuthError, StoreAway
from backends.base import Call
from gateway.errors import (
    BodyTooLarge,
    Forbidden,
    GatewayError,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    NoBackend,
    NotSupported,
    Overloaded,
    QuotaExhausted,
    RateLimited,
    ShuttingDown,
    Unauthenticated,
    Unavailable,
    UpstreamTimeout,
)
from gateway.limits.base import Pending, Refusal
from gateway.metering.record import MAX_COST_PUSD, UsageRecord
from gateway.metering.tried import tried_text
from gateway.relay import answers
from gateway.relay.attempt import Attempt
from gateway.relay.content import Content
from gateway.relay.estimate import cost_pusd, prices_of, reservation
from gateway.relay.operations import check_required
from gateway.relay.relayed import Count, Relayed
from gateway.relay.shadow import shadow
from gateway.relay.tokenize import TokenizeExchange
from gateway.routing.health import REST_S
from gateway.routing.policies.affinity import value_of
from gateway.wire import heads

if TYPE_CHECKING:
    from collections.abc import Callable

    from auth.principal import Limited, Principal
    from gateway.limits.base import Permit
    from gateway.metering.progress import Progress
    from gateway.relay.edge import Edge, Request
    from gateway.relay.estimate import Reservation
    from gateway.relay.operations import Operation
    from gateway.relay.stream import EventStream
    from gateway.routing.policies import Affinity
    from gateway.routing.table import Route, Target
    from gateway.runtime import Relay
    from gateway.wire.body import Peek
    from gateway.wire.tokens import Tokenizer
    from gateway.wire.usage import Usage

logger = structlog.get_logger(__name__)

_NO_CREDENTIAL: Final = "No valid API key was given. Send it as 'Authorization: Bearer YOUR_KEY'."
_STORE_AWAY: Final = "The gateway cannot look up this credential at this moment; try again shortly."
_LATE_S: Final = 1.0  # after this a credential is judged again though nothing changed: what ends by itself (a key, a token) may have ended
_COUNTED_AT_ONCE_BYTES: Final = 2048  # of words: encoding takes about 0.3 ms per KB, and many clients may leave at the same time
_MOST_FALLBACKS: Final = 4  # of one request: a chain of models longer than this is a mistake


class Closing:
    """How a request ends whose tokens are being counted. `last`: what the client gets then; `lines`: the head's, of a whole answer."""

    __slots__ = ("clock", "count", "ending", "last", "lines", "outcome", "work")

    def __init__(self, ending: str, outcome: str | None, last: bytes | None, lines: bytes | None, count: Count) -> None:
        self.ending = ending
        self.outcome = outcome
        self.last = last
        self.lines = lines
        self.count = count
        self.work: asyncio.Future[None] | None = None
        self.clock: asyncio.TimerHandle | None = None


class Flow:
    """One relayed request. Made by the edge when its head is complete; over when `_settle` or `refuse` has run."""

    __slots__ = (
        "_at_work",
        "_body",
        "_callers",
        "_client_model",
        "_closing",
        "_committed",
        "_deadlines",
        "_fallbacks",
        "_in_attempt",
        "_judged_by",
        "_judged_s",
        "_limited",
        "_parked",
        "_peek",
        "_permit",
        "_prices",
        "_principal",
        "_queue_ms",
        "_record",
        "_reservation",
        "_route",
        "_serving",
        "_shadow_body",
        "_slot",
        "_spliced",
        "_started",
        "_started_at",
        "_status",
        "_target",
        "_targets",
        "_tokenizer",
        "_trial",
        "_tried",
        "_tries",
        "_waiting",
        "attempt",
        "content",
        "edge",
        "over",
        "place",
        "progress",
        "relay",
        "request",
        "resent",
        "resent_without_usage",
        "streams",
        "usage",
    )

    def __init__(self, relay: Relay, edge: Edge, request: Request) -> None:
        self.relay = relay
        self.edge = edge
        self.request = request
        self._started = time.perf_counter()
        self.over = False
        self.streams = False
        self.attempt: Attempt | None = None
        self.content: Content | None = None  # what is said, where that is logged
        self.usage: Usage | None = None
        self.resent = False  # to this target on a fresh connection, after a stale one
        self.resent_without_usage: Target | None = None
        self._record: UsageRecord | None = None
        self._principal: Principal | None = None
        self._callers: tuple[Limited, ...] = ()  # all that this request is counted under
        self._permit: Permit | None = None
        self._parked: Pending | None = None  # the limiter has yet to decide
        self._peek: Peek | None = None
        self._tokenizer: Tokenizer | None = None
        self._body = b""
        self._shadow_body = b""
        self._status = 499
        self._slot = False
        self._waiting = False
        self._queue_ms = 0.0
        self._trial = 0  # the number under which a half-open target watches this attempt
        self._limited = False  # a target has answered 429
        self._committed = False
        self._in_attempt = False  # the running attempt is counted as load of its target
        self._at_work = False  # some backend may have worked for this request
        self._tried: list[tuple[str, str, float]] | None = None  # attempts that failed: backend, outcome, milliseconds
        self._closing: Closing | None = None  # it is over but for counting what it used
        self.progress: Progress = relay.ledger.progress
        self.place = -1  # its slot there, from BEGIN to END

    # 1 credential

    def open(self) -> None:
        """The head is complete: who is it, and may a body follow?"""
        request, relay = self.request, self.relay
        if not self._identify():
            return
        if request.content_length > relay.max_body_bytes:
            self.refuse(self.body_too_large())
        elif request.content_length > 0 and relay.held_bytes + request.content_length > relay.max_held_bytes:
            self.refuse(self.too_much_held())

    def _identify(self) -> bool:
        """Who is it, and may they come in? False: refused, and over."""
        relay = self.relay
        self._principal = None
        self._callers = ()
        self._judged_by = relay.known.applied
        self._judged_s = relay.clock.now_s
        try:
            credential = credential_of(self.request.headers)
            self._principal = principal = relay.authenticator.authenticate(credential, time.time(), self.edge.shown)
            self._callers = principal.callers
            if principal.networks is not None and not principal.may_come_from(self._address()):
                raise Forbidden("This key may not be used from this address.")
            if "inference" not in principal.scopes:
                raise Forbidden("This credential does not have the scope 'inference'.")
            return True
        except StoreAway as error:
            self.refuse(Unavailable(_STORE_AWAY, code="store_unavailable", retry_after_s=error.retry_after_s), error.reason)
        except AuthError as error:
            self.refuse(Unauthenticated(_NO_CREDENTIAL), error.reason)
        except GatewayError as error:
            self.refuse(error)
        except Exception:
            self.bug()
        return False

    def _outdated(self) -> bool:
        """Has anything been put in force since the credential was judged, or time gone by? A body may take long, and so may a slot."""
        relay = self.relay
        return relay.known.applied != self._judged_by or relay.clock.now_s - self._judged_s > _LATE_S

    def _address(self) -> str:
        """Where the request comes from, behind the proxies that are trusted."""
        client = self.edge.client
        return client_address(client[0] if client else "", self.request.headers, self.relay.trusted_proxies)

    def too_much_held(self) -> Overloaded:
        return Overloaded("The gateway holds as much in memory as it may; try again shortly.", retry_after_s=1)

    def body_too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"The request body is larger than the limit of {self.relay.max_body_bytes} bytes.")

    # 2 body, 3 model, 4 reserve

    def run(self, body: bytes) -> None:
        """The body is complete: take a slot, or wait for one."""
        self._body = body
        slots = self.relay.slots
        if slots.take():
            self._slot = True
            self.start()
        elif slots.wait(self):
            self._waiting = True
            self._queue_ms = (time.perf_counter() - self._started) * 1000
            self.edge.deadline_s = time.monotonic() + slots.wait_s
        else:
            self.refuse(_overloaded())

    def slot_free(self) -> None:
        """The wait is over: a slot was taken for this flow."""
        if self.over:  # it gave up a moment ago
            self.relay.slots.leave()
            return
        self._queue_ms = (time.perf_counter() - self._started) * 1000 - self._queue_ms
        self._waiting = False
        self._slot = True
        self.edge.deadline_s = 0.0
        self.start()

    def start(self) -> None:
        """All that the request is decided by is here."""
        if self._outdated() and not self._identify():
            return
        try:
            self._admit()
        except GatewayError as error:
            self.refuse(error)
        except Exception:
            self.bug()

    def _admit(self) -> None:
        request = self.request
        operation = request.operation
        body = self._body
        self._peek = peek = operation.read(body, request.content_type)
        check_required(operation, peek.fields)
        route = self._find_route(peek)
        self._route = self._serving = route
        self._client_model = peek.model or route.id
        self.streams = peek.stream and operation.streams
        if operation.inside:
            self._tokenizer = self._find_tokenizer(route)
        decision = self._reserve(route, peek, body)
        if type(decision) is Pending:
            self._park(decision)
        else:
            self._enter(route, self._permitted(decision))

    def _park(self, pending: Pending) -> None:
        """Wait for who decides: `decided` follows, in any case and soon."""
        self._parked = pending
        self.edge.deadline_s = 0.0
        pending.wait(self)

    def decided(self, decision: Permit | Refusal | GatewayError) -> None:
        """The wait is over. The credential is judged once more, if there was time for it to change."""
        self._parked = None
        permit: Permit | None = None
        try:
            if isinstance(decision, GatewayError):
                raise decision
            permit = self._permitted(decision)
            if self._still_welcome():
                taken, permit = permit, None
                self._enter(self._route, taken)
        except GatewayError as error:
            self.refuse(error)
        except Exception:
            self.bug()
        if permit is not None:
            permit.settle(0, 0)

    def _still_welcome(self) -> bool:
        """False: refused, and over."""
        if self._outdated():
            callers, peek = self._callers, self._peek
            if not self._identify():
                return False
            self._callers = callers  # the permit is theirs
            assert peek is not None
            self._find_route(peek)
        return True

    def _permitted(self, decision: Permit | Refusal | Pending) -> Permit:
        if type(decision) is not Refusal:
            return decision  # type: ignore[return-value]  # the other side of the union
        self.relay.meter.limit_refusal(decision.kind)
        raise _limit_error(decision)

    def _enter(self, route: Route, permit: Permit) -> None:
        """With a permit: BEGIN, and the first try."""
        self._permit = permit
        self._target = self._tries = self._fallbacks = 0
        self._targets: tuple[Target, ...] = ()
        self._begin(route, permit)
        if route.shadow is not None and self._tokenizer is None and route.shadow.wants(self.relay.rng):
            self._shadow_body = self._body
        self._try()

    def _find_route(self, peek: Peek) -> Route:
        model = peek.model
        principal = self._principal
        assert principal is not None
        if model is None:
            model = self._default_model(peek)
        route = self.relay.table.routes.get(model)
        if route is None or not principal.may_use(model):
            raise ModelNotFound(f"The model {model[:100]!r} does not exist or this key may not use it.", param="model")
        return route

    def _default_model(self, peek: Peek) -> str:
        """Tokenize and detokenize may name no model; everything else must."""
        if self.request.operation.inside:
            preferred = self.relay.default_models
            if "messages" in peek.fields:
                preferred = preferred[::-1]
            for model in preferred:
                if model in self.relay.table.routes:
                    return model
        raise InvalidRequest("'model' is required.", param="model")

    def _find_tokenizer(self, route: Route) -> Tokenizer | None:
        """The route's own tokenizer; None where the backend is to be asked ("upstream")."""
        tokenizer = self.relay.tokenizers.of(route.id)
        if tokenizer is None and route.tokenizer != "upstream":
            raise NotSupported(f"No tokenizer is known for the model {route.id!r}.", param="model")
        return tokenizer

    def _reserve(self, route: Route, peek: Peek, body: bytes) -> Permit | Refusal | Pending:
        relay = self.relay
        if route.limited is not None:
            self._callers = (*self._callers, route.limited)
        self._started_at = at_s = time.time() - (time.perf_counter() - self._started)
        wanted = reservation(self.request.operation, route, peek, body, self._callers, relay.tokenizers, at_s)
        if route.fallback is not None:
            wanted = self._dearest(wanted, route, peek, body)
        self._reservation: Reservation = wanted
        self._spliced = wanted.spliced
        return relay.limiter.reserve(self._callers, wanted.tokens, wanted.cost_pusd)

    def _dearest(self, wanted: Reservation, route: Route, peek: Peek, body: bytes) -> Reservation:
        """What is reserved holds whichever model of the chain of fallbacks serves in the end."""
        relay = self.relay
        for _ in range(_MOST_FALLBACKS):
            other = relay.table.routes.get(route.fallback) if route.fallback is not None else None
            if other is None:
                break
            own = reservation(self.request.operation, other, peek, body, self._callers, relay.tokenizers, self._started_at)
            wanted = wanted.at_least(own)
            route = other
        return wanted

    def _begin(self, route: Route, permit: Permit) -> None:
        """The request is admitted: BEGIN. From here on it ends in `_settle`."""
        principal, request, relay = self._principal, self.request, self.relay
        assert principal is not None
        self._prices = prices_of(route, None, self._started_at)
        record = UsageRecord(
            request_id=request.id,
            started_at=self._started_at,
            operation=request.operation.name,
            key_id=principal.key_id,
            user_id=principal.user_id,
            model=route.id,
            revision=route.revision,
            client_request_id=request.client_request_id,
            queue_ms=self._queue_ms,
            team_id=principal.team_id,
        )
        reserved = self._reservation
        try:
            if route.arms is not None:
                record.experiment, record.arm = route.arms.name, route.arms.arm(self)
            self.place = relay.ledger.begin(record, reserved.tokens, reserved.cost_pusd, reserved.prompt_tokens)
        except BaseException:
            permit.settle(0, 0)
            raise
        self._record = record
        if principal.content_log or route.content_log:
            self._log_content()
        relay.meter.begin(route.id)
        route.retries.deposit()
        total_s = route.timeouts.total_s
        self._deadlines = (time.monotonic() + total_s if total_s else 0.0, route.timeouts.first_byte_s, route.timeouts.idle_s)
        if self._tokenizer is None:
            self._targets = self._order(route, route.fallback is None)
            if not self._targets and not self._fall_back():
                self._targets = self._order(route, True)
                if not self._targets:
                    raise NoBackend(f"No backend of the model {route.id!r} takes requests now.", retry_after_s=5)

    def _log_content(self) -> None:
        """The key or the model says so: what is said from here on is gathered."""
        request, contents = self.request, self.relay.contents
        if contents is not None and self.content is None:
            self.content = Content(self.relay, contents, self._body, request.operation.content_type(request.content_type))

    # 5 order

    def _order(self, route: Route, least_bad: bool) -> tuple[Target, ...]:
        """Who is asked, in which order. `least_bad`: where all rest, the least bad is asked rather than everyone refused."""
        targets = route.targets
        operation = self.request.operation
        if operation.custom_only and not all(operation.serves(target.type) for target in targets):
            targets = tuple([target for target in targets if operation.serves(target.type)])
            if not targets:
                raise operation.not_offered(route.id)
        if route.has_local and not all(target.backend.ready for target in targets):
            targets = tuple([target for target in targets if target.backend.ready]) or targets
        board = self.relay.health
        if board.troubled:
            now_s = time.monotonic()
            targets = board.usable(targets, now_s)
            if not least_bad and not any(target.weight > 0 and target.health.available(now_s) for target in targets):
                return ()
        return route.policy.order(targets, self, self.relay.rng)

    def in_flight(self, target: Target) -> int:
        """For policies: requests that run on a target now."""
        return self.relay.load.in_flight(target)

    def affinity(self, by: Affinity) -> bytes | None:
        """For policies: what this request has in common with others that should meet the same target."""
        principal, peek = self._principal, self._peek
        assert principal is not None and peek is not None
        return value_of(by, principal.limit_id, peek.fields, self.request.headers)

    def _fall_back(self) -> bool:
        """To the model that the route names for when it cannot serve itself."""
        route = self._serving
        while route.fallback is not None and self._fallbacks < _MOST_FALLBACKS:
            self._fallbacks += 1
            other = self.relay.table.routes.get(route.fallback)
            if other is None:
                return False
            route = other
            if not any(self.request.operation.serves(target.type) for target in route.targets):
                continue
            targets = self._order(route, route.fallback is None)
            if targets:
                self._serving, self._targets = route, targets
                if route.content_log:
                    self._log_content()
                self._spliced = self._bounds(route)
                self._target = self._tries = 0
                self._deadlines = (self._deadlines[0], route.timeouts.first_byte_s, route.timeouts.idle_s)
                return True
        return False

    def _bounds(self, route: Route) -> tuple[tuple[str, bytes], ...]:
        """What keeps a request to this route within what was reserved for it."""
        peek, relay = self._peek, self.relay
        assert peek is not None
        return reservation(self.request.operation, route, peek, self._body, self._callers, relay.tokenizers, self._started_at).spliced

    # 6 exchange

    def _try(self) -> None:
        """Try the target whose turn it is."""
        record, request, relay = self._record, self.request, self.relay
        assert record is not None
        operation = request.operation
        record.attempts += 1
        self._tries += 1
        tokenizer = self._tokenizer
        if tokenizer is not None:
            record.backend = "gateway"
            attempt = Attempt(self, None, TokenizeExchange(tokenizer, operation.name, relay.tokenizers.pool), False, None)
            call = Call("gateway", operation.name, operation.path, self._body, (), 0)
        else:
            route = self._serving
            target = self._targets[self._target]
            self._prices = prices_of(route, target, self._started_at)
            record.backend = target.id if route is self._route else f"{route.id}/{target.id}"
            peek = self._peek
            assert peek is not None
            asks = (
                self.streams
                and operation.asks_usage
                and not peek.include_usage
                and target.backend.asks_usage
                and target is not self.resent_without_usage
            )
            renames = target.upstream_model != self._route.id
            attempt = Attempt(self, target, target.backend.open(), asks, self._client_model if renames else None)
            call = Call(
                target.id,
                operation.name,
                operation.path,
                self._outgoing(target, peek, asks),
                ((b"x-request-id", request.id.encode()), *request.forwarded),
                route.timeouts.connect_s,
                operation.content_type(request.content_type),
            )
            relay.load.enter(target)
            self._trial = target.health.began(time.monotonic()) if target.health.marked else 0
        prices = self._prices
        self.progress.attempt(self.place, record.attempts, record.backend, prices.text if prices is not None else None)
        self.attempt = attempt
        self._in_attempt = True
        first_byte_s = self._deadlines[1]
        self._set_deadline(attempt.started_s + first_byte_s if first_byte_s else 0.0)
        attempt.start(call)

    def _outgoing(self, target: Target, peek: Peek, asks_usage: bool) -> bytes:
        """The body for this target: the client's, with as few bytes changed as may be."""
        operation = self.request.operation
        values: dict[str, bytes] = {}
        if target.upstream_model != peek.model:
            values["model"] = orjson.dumps(target.upstream_model)
        if asks_usage:
            options = peek.fields.get("stream_options") or {}
            values["stream_options"] = orjson.dumps({**options, "include_usage": True})
        if self._spliced:
            values.update(self._spliced)
        parameters = self._serving.parameters
        if parameters and not operation.inside:
            for name, default in operation.parameters(parameters, peek).items():
                values.setdefault(name, orjson.dumps(default))
        if not values:
            return self._body
        replace = {name: value for name, value in values.items() if name in peek.fields}
        insert = [(name, value) for name, value in values.items() if name not in peek.fields]
        return operation.edit(self._body, self.request.content_type, replace, insert)

    def connected(self, connect_ms: float | None) -> None:
        """The head of an answer is here."""
        if self._record is not None:
            self._record.connect_ms = connect_ms

    def proven_without_usage(self, attempt: Attempt) -> None:
        """An answer to the body that was sent again: it was our `stream_options` that this backend refused."""
        if attempt.target is not None and attempt.target is self.resent_without_usage:
            attempt.target.backend.asks_usage = False

    def failed(self, failure: GatewayError, outcome: str) -> None:
        """The attempt failed before the commit point: another target, another model, or the answer that says why not."""
        self._leave_attempt(outcome)
        try:
            if self._may_go_on():
                self._try()
                return
        except GatewayError as error:
            failure = error
        self.answer_error(failure, answers.ending_of(failure))

    def given_up(self, failure: GatewayError, outcome: str) -> None:
        """The attempt failed by a limit of ours: another target would fare no better, and cost once more."""
        self._leave_attempt(outcome)
        self.answer_error(failure, answers.ending_of(failure))

    def _may_go_on(self) -> bool:
        """Is there another target, and are retries no flood yet?"""
        route, now_s = self._serving, time.monotonic()
        following = self._following(now_s) if self._tries < route.max_attempts else 0
        if not following and (route.fallback is None or self._tokenizer is not None):
            return False
        if not self._route.retries.withdraw(now_s):
            self.relay.meter.retry_denied(self._route.id)
            return False
        if following:
            self._target = following
        elif not self._fall_back():
            return False
        self.resent = False
        self.relay.meter.retry(self._route.id)
        return True

    def _following(self, now_s: float) -> int:
        """The place of the next target that may be tried; 0: there is none. What was healthy when the order was made may not be now."""
        targets = self._targets
        for place in range(self._target + 1, len(targets)):
            health = targets[place].health
            if not health.marked or health.available(now_s):
                return place
        return 0

    def failed_stale(self, failure: GatewayError) -> None:
        """A kept connection died as it was used, before any byte of an answer: the same target once more, with nothing lost by it."""
        if self.resent:
            self.failed(failure, "stale")
        else:
            self.resent = True
            self._again("stale")

    def without_stream_options(self, status: int) -> bool:
        """A 400 or 422 to a body into which we put `stream_options`: never do so again here, and send it once more without."""
        attempt = self.attempt
        if attempt is None or not attempt.asked_usage or status not in (400, 422):
            return False
        self.resent_without_usage = attempt.target
        self._again(f"{status}")
        return True

    def _again(self, outcome: str) -> None:
        """The same try, sent again."""
        record = self._record
        assert record is not None
        self._leave_attempt(outcome)
        record.attempts -= 1
        self._tries -= 1
        self._try()

    def limited(self, retry_after_s: float | None) -> bool:
        """A 429: the target rests. True: another is asked instead, once in a request."""
        attempt = self.attempt
        if attempt is not None and attempt.target is not None:
            now_s = time.monotonic()
            attempt.target.health.rest(now_s + (REST_S if retry_after_s is None else retry_after_s), now_s, self._trial)
        if self._limited:
            return False
        self._limited = True
        if not self._may_go_on():
            return False
        self._leave_attempt("429")
        self._try()
        return True

    def rest(self, retry_after_s: float) -> None:
        """The backend said when to come back, though it failed."""
        attempt = self.attempt
        if attempt is not None and attempt.target is not None:
            now_s = time.monotonic()
            attempt.target.health.pause(now_s + retry_after_s, now_s)

    def _leave_attempt(self, outcome: str) -> None:
        """One attempt is over: its target is freed and judged, the outcome counted, and named in the log unless all was well."""
        record, attempt, relay = self._record, self.attempt, self.relay
        if not self._in_attempt or record is None or attempt is None:
            return
        if not self.over:
            self._note_failed(record, attempt, outcome)
        self._in_attempt = False
        target = attempt.target
        if target is not None:
            relay.load.leave(target)
            health = target.health
            if outcome == "ok":
                if health.marked:
                    health.succeeded(time.monotonic(), self._trial)
            elif outcome not in _NO_VERDICT:
                health.failed(outcome, time.monotonic(), self._trial)
            elif health.marked:
                health.abandoned(time.monotonic(), self._trial)
        backend = record.backend or "none"
        relay.meter.attempt(record.model, backend, outcome)
        if outcome not in _UNREMARKABLE:
            relay.log.attempt_failed(time.time(), record.request_id, record.model, backend, outcome)

    def _note_failed(self, record: UsageRecord, attempt: Attempt, outcome: str) -> None:
        """For the record: the attempt that ends now, if it failed."""
        if outcome not in _UNREMARKABLE:
            self._tried = self._tried or []
            self._tried.append((record.backend or "none", outcome, (time.monotonic() - attempt.started_s) * 1000))

    # 7 relay

    def keeper(self, operation: Operation) -> Relayed | None:
        """What keeps a stream's words; None where nobody could count them, or nobody will."""
        if not operation.generates or self.relay.tokenizers.of(self._serving.id) is None:
            return None
        return Relayed(operation.protocol, self.relay)

    def commit(self, status: int, lines: bytes, by_close: bool = False) -> None:
        """The first of a stream is here: the head goes out, and what only another attempt would need is let go.

        `by_close`: the end of the connection is to be the end of the answer.
        """
        record, permit = self._record, self._permit
        assert record is not None and permit is not None
        self._committed = True
        self._status = status
        if self.streams:
            record.ttft_ms = (time.perf_counter() - self._started) * 1000
        target = self.attempt.target if self.attempt is not None else None
        if self._trial and target is not None:  # a half-open target has proven itself: others need not wait for the end of this stream
            target.health.succeeded(time.monotonic(), self._trial)
            self._trial = 0
        self._peek = None
        if not self._keeps_body():
            self._body = b""
            if not self._shadow_body:
                self.edge.drop_body(self.request)
        self.wind_idle_clock()
        if self.content is not None:
            lines = self.content.begin_answer(lines)
        self.edge.write_head(self.request, status, lines + permit.headers, by_close)

    def _keeps_body(self) -> bool:
        """For counting the prompt at the end, should nobody else: as long as bodies take less than half of the memory that they may."""
        attempt, relay = self.attempt, self.relay
        stream = attempt.stream if attempt is not None else None
        return stream is not None and stream.relayed is not None and relay.held_bytes * 2 < relay.max_held_bytes

    def wind_idle_clock(self) -> None:
        """The backend sent something. A slow client stops this clock."""
        if not self.edge.write_paused:
            idle_s = self._deadlines[2]
            self._set_deadline(self.relay.clock.now_s + idle_s if idle_s else 0.0)

    def _set_deadline(self, at_s: float) -> None:
        total_at = self._deadlines[0]
        if total_at and (not at_s or total_at < at_s):
            at_s = total_at
        self.edge.deadline_s = at_s

    # what the edge tells

    def on_deadline(self) -> None:
        """A clock has run out. Which one follows from where the flow stands."""
        try:
            if self._waiting:
                self.relay.slots.forget(self)
                self._waiting = False
                self.refuse(_overloaded())
            elif self._record is not None:
                self._time_out()
        except Exception:
            self.bug()

    def _time_out(self) -> None:
        total_at, first_byte_s, _ = self._deadlines
        outcome = "timeout"
        now_s, name, attempt = time.monotonic(), self.backend_name, self.attempt
        assert attempt is not None
        if total_at and now_s >= total_at:
            failure = UpstreamTimeout("The request took longer than it may in all.", code="upstream_total_timeout")
            if self._committed:  # it was sending: the idle clock would have said otherwise
                outcome = "total_timeout"
        elif self._committed:
            failure = UpstreamTimeout(f"The backend {name} stopped sending.", code="upstream_idle_timeout")
        else:  # this clock runs from when the request went out: connecting has its own
            due_s = attempt.sent_at_s + first_byte_s if attempt.sent else now_s + first_byte_s
            if now_s < due_s:
                self._set_deadline(due_s)
                return
            failure = UpstreamTimeout(f"The backend {name} did not begin to answer in time.", code="upstream_first_byte_timeout")
        self._at_work = attempt.sent
        attempt.abort()
        if self._committed:
            self.broken(failure, outcome, "timeout", b"")
        else:  # the backend may still be at work: no other is asked to do it again
            self._leave_attempt(outcome)
            self.answer_error(failure, "timeout")

    def client_gone(self) -> None:
        """The connection to the client is lost: stop the backend at once, settle what was used."""
        if self.over:
            if self._closing is not None:
                self._closing.ending, self._closing.last = "client_gone", None
                if not self._committed:  # the answer was whole, and waited: nothing of it went out
                    self._status = 499
            return
        attempt = self.attempt
        if attempt is not None:
            self._at_work = self._at_work or attempt.sent
            try:
                attempt.abort()
            except Exception:  # it is settled all the same: nobody comes back to it
                logger.exception("a backend's exchange could not be ended", request_id=self.request.id)
        if self._record is None:
            self.over = True
            self._unpark()
            self._leave_slot()
        else:
            self._settle("client_gone", "client_gone", None)

    def shut_down(self) -> None:
        """The server must end now: say so to the client as far as the answer has come, and settle."""
        if self.over:
            self.hurry()
            return
        failure = ShuttingDown("The gateway is shutting down; send the request again.", retry_after_s=1)
        try:
            attempt = self.attempt
            if attempt is not None:
                self._at_work = self._at_work or attempt.sent
                attempt.abort()
            if self._committed:
                self.broken(failure, "shutdown", "shutdown", b"")
            elif self._record is not None:
                self._leave_attempt("shutdown")
                self.answer_error(failure, "shutdown")
            else:
                self.refuse(failure)
        except Exception:
            self.bug()

    def pause(self) -> None:
        """The client reads slowly: stop reading from the backend. The idle clock stands still meanwhile."""
        exchange = self.attempt.exchange if self.attempt is not None else None
        if exchange is not None and not self.over:
            exchange.pause()
            self._set_deadline(0.0)

    def resume(self) -> None:
        exchange = self.attempt.exchange if self.attempt is not None else None
        if exchange is not None and not self.over:
            idle_s = self._deadlines[2]
            self._set_deadline(self.relay.clock.now_s + idle_s if idle_s else 0.0)
            exchange.resume()

    # answers

    def answer(self, status: int, lines: bytes, body: bytes, usage: Usage | None, ending: str) -> None:
        """The whole answer is here: END, then the bytes."""
        permit = self._permit
        assert permit is not None
        self.usage = usage
        self._status = status
        self._at_work = True
        self._settle(ending, "ok" if ending == "success" else f"{status // 100}xx", body, lines + permit.headers)

    def finish(self, last: bytes, ending: str, outcome: str) -> None:
        """A stream ended cleanly: END, then its last bytes."""
        self._settle(ending, outcome, last)

    def broken(self, failure: GatewayError, outcome: str, ending: str, last: bytes) -> None:
        """After the commit point: one error event in the protocol's shape, then the end, without [DONE]. A body that is no stream of
        events has no place for an error: its connection is cut, so that nobody takes it for whole.
        """
        attempt = self.attempt
        if attempt is not None and attempt.stream is None:
            self._settle(ending, outcome, None)
            self.edge.cut(self.request)
        else:
            latest = attempt.stream.latest if attempt is not None and attempt.stream is not None else b""
            self._settle(ending, outcome, last + self.request.operation.protocol.error_event(failure.body(), latest))

    def answer_error(self, error: GatewayError, ending: str) -> None:
        """An admitted request ends in an error before the commit point."""
        permit = self._permit
        assert permit is not None
        self._status = error.status
        lines, body = self._error_answer(error)
        self._settle(ending, None, body, lines + permit.headers)

    def refuse(self, error: GatewayError, reason: str | None = None) -> None:
        """Not admitted: nothing was reserved, nothing is in the ledger. (One that was admitted ends in `answer_error`.)"""
        if self.over:
            return
        if self._record is not None:
            if self.attempt is not None:
                self.attempt.abort()
            self._leave_attempt("bug")
            if self._committed:
                self.broken(error, "bug", answers.ending_of(error), b"")
            else:
                self.answer_error(error, answers.ending_of(error))
            return
        self.over = True
        self._unpark()
        self._leave_slot()
        request, principal, relay = self.request, self._principal, self.relay
        key_id = principal.key_id if principal is not None else None
        relay.meter.refusal(request.operation.name, error.code)
        relay.log.refused(time.time(), request.id, request.operation.name, error.status, error.code, reason or error.code, key_id)
        lines, body = self._error_answer(error)
        self._let_go()
        self.edge.write_answer(request, error.status, lines + (error.headers or self._limit_headers()), body)

    def _error_answer(self, error: GatewayError) -> tuple[bytes, bytes]:
        return heads.error_answer(error, self.request.operation.protocol)

    def _limit_headers(self) -> bytes:
        """Every answer to a limited caller says what is left, those before the reservation too."""
        return self.relay.limiter.headers(self._callers) if self._callers else b""

    @property
    def model(self) -> str:
        """The model that serves."""
        return self._serving.id

    @property
    def backend_name(self) -> str:
        record = self._record
        return (record.backend if record is not None else None) or "none"

    # 8 settle

    def _settle(self, ending: str, outcome: str | None, last: bytes | None, lines: bytes | None = None) -> None:
        """Exactly once, for every admitted request, however it ends; then its last bytes (None: nobody is there for them).

        Where the backend did not say what it used and the model's tokenizer is known, that counts it first: a little at once, more in a
        thread, and END and the last bytes wait for it. A shutdown waits for nothing: there is the estimate.
        """
        if self.over:
            return
        self.over = True
        count: Count | None = None
        if ending != "shutdown":
            try:
                count = self._uncounted(ending, last if lines is not None and ending == "success" else None)
                if count is not None and count.size_bytes <= _COUNTED_AT_ONCE_BYTES:
                    count.run()
                elif count is not None and self._count_beside(Closing(ending, outcome, last, lines, count)):
                    return
            except Exception:  # whatever it is, the request must be booked
                logger.exception("tokens could not be counted", request_id=self.request.id)
                count = None
        self._close(ending, outcome, last, lines, count)

    def _uncounted(self, ending: str, answer: bytes | None) -> Count | None:
        """What is to be counted; None where it is known, or can only be estimated."""
        attempt, operation = self.attempt, self.request.operation
        if attempt is None or operation.inside or operation.raw or ending == "rejected" or not (self._at_work or self._committed):
            return None
        stream = attempt.stream
        usage = stream.usage if stream is not None else self.usage
        prompt_said = usage is not None and usage.prompt_tokens is not None
        answer_said = self._answer_said(usage, stream)
        if prompt_said and answer_said:
            return None
        tokenizer = self.relay.tokenizers.of(self._serving.id)
        if tokenizer is None:
            return None
        relayed = stream.relayed if stream is not None and stream.events and not answer_said else None
        body = b"" if prompt_said else self._body
        words_bytes = stream.words_bytes if stream is not None and relayed is not None else 0
        if answer is None or answer_said or not operation.generates:
            answer = b""
        return Count(tokenizer, operation, body, relayed, words_bytes, answer)

    def _answer_said(self, usage: Usage | None, stream: EventStream | None) -> bool:
        """Did the backend say how long its answer is, all of it? (There is nothing to say of one that is not generated.)"""
        if usage is None or (stream is not None and not stream.reported):
            return False
        return usage.completion_tokens is not None or not self.request.operation.generates

    def _count_beside(self, closing: Closing) -> bool:
        """In a thread; then `_counted`. False: there is no thread any more, or too many wait for one."""
        relay, loop = self.relay, asyncio.get_running_loop()
        if len(relay.counting) >= relay.most_counting or relay.held_bytes + closing.count.size_bytes > relay.max_held_bytes:
            return False
        try:
            closing.work = work = loop.run_in_executor(relay.tokenizers.pool, closing.count.run)
        except RuntimeError:
            return False
        self._closing = closing
        self.edge.deadline_s = 0.0  # all clocks of the request have stopped but this one
        closing.clock = loop.call_later(relay.count_s, self.hurry)
        relay.held_bytes += closing.count.size_bytes  # the edge may give back its own before
        relay.counting.add(self)
        work.add_done_callback(self._counted)
        return True

    def _counted(self, work: asyncio.Future[None]) -> None:
        failed = work.cancelled() or work.exception() is not None
        closing = self._closing
        if closing is not None:
            self._end_count(closing, None if failed else closing.count)

    def hurry(self) -> None:
        """The server must end now, or it took too long: a count that is under way is not waited for."""
        closing = self._closing
        if closing is not None:
            self._end_count(closing, None)

    def _end_count(self, closing: Closing, count: Count | None) -> None:
        self._closing = None
        self.relay.counting.discard(self)
        self.relay.held_bytes -= closing.count.size_bytes
        if closing.clock is not None:
            closing.clock.cancel()
        if closing.work is not None:
            closing.work.cancel()  # one that has not begun lets go of the body
        try:
            self._close(closing.ending, closing.outcome, closing.last, closing.lines, count)
        except Exception:
            self.bug()

    def _close(self, ending: str, outcome: str | None, last: bytes | None, lines: bytes | None, count: Count | None) -> None:
        """END, metrics, permit, log; then the last bytes."""
        record, permit, relay = self._record, self._permit, self.relay
        assert record is not None and permit is not None
        done = 0
        try:
            record.status = self._status
            record.ending = ending
            self._count(record, count)
            record.duration_ms = (time.perf_counter() - self._started) * 1000
            if outcome is not None and self._in_attempt and self.attempt is not None:
                self._note_failed(record, self.attempt, outcome)
            if self._tried is not None:
                record.tried = tried_text(self._tried)
            relay.ledger.end(record, self.place)
            done = 1
            self.place = -1
            permit.settle(record.prompt_tokens + record.completion_tokens, record.cost_pusd)
            done = 2
            if outcome is not None:
                self._leave_attempt(outcome)
            done = 3
            relay.meter.record(record)
            done = 4
            relay.log.ended(record)
        except Exception:
            logger.exception("a request could not be settled as usual", request_id=self.request.id)
            self._close_anyway(record, permit, outcome, done)
        if self.content is not None:
            lines = self._end_content(self.content, record, last, lines)
        self._leave_slot()
        if self._shadow_body and ending == "success":
            request = self.request  # in a call of its own: the last bytes of the original are not written yet
            asyncio.get_running_loop().call_soon(
                shadow, relay, self._route, request.operation, request.content_type, self._shadow_body, record
            )
        self._let_go()
        if last is None:
            return
        if lines is None:
            self.edge.write_last(self.request, last)
        else:
            self.edge.write_answer(self.request, self._status, lines, last)

    def _end_content(self, content: Content, record: UsageRecord, last: bytes | None, lines: bytes | None) -> bytes | None:
        """The last of what is said, and all of it to whoever keeps it. The head's lines, which tell of it."""
        self.content = None
        try:
            if lines is not None:
                lines = content.begin_answer(lines)
            if last is not None:
                content.add(last)
            content.finish(record)
        except Exception:  # the request goes on
            logger.exception("the content of a request could not be kept", request_id=self.request.id)
        return lines

    def _close_anyway(self, record: UsageRecord, permit: Permit, outcome: str | None, done: int) -> None:
        """One step of `_close` failed, that after the first `done`: END is written all the same, and the others are taken one by one."""
        if not done:
            record = _bare(record)
            self._try_step(lambda: self._end_bare(record))
            self._try_step(lambda: permit.settle(record.prompt_tokens + record.completion_tokens, record.cost_pusd))
        if done <= 1 and outcome is not None:
            self._try_step(lambda: self._leave_attempt(outcome))
        if done <= 2:
            self._try_step(lambda: self.relay.meter.record(record))
        if done <= 3:
            self._try_step(lambda: self.relay.log.ended(record))

    def _end_bare(self, record: UsageRecord) -> None:
        self.relay.ledger.end(record, self.place)
        self.place = -1

    def _try_step(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception:
            logger.exception("a request could not be settled", request_id=self.request.id)

    def _let_go(self) -> None:
        """Leave no circle behind, least of all one that holds a body: memory must not wait for the collector."""
        attempt, self.attempt = self.attempt, None
        if attempt is not None and attempt.stream is not None and attempt.stream.relayed is not None:
            attempt.stream.relayed.release()
        self._peek = None
        self._body = self._shadow_body = b""

    def _count(self, record: UsageRecord, count: Count | None) -> None:
        """The backend's own number when there is one; else what the tokenizer counted; else what was asked and relayed, as far as anything
        was. `tokenizer`: of what the backend did not say, all was counted.
        """
        attempt = self.attempt
        stream = attempt.stream if attempt is not None else None
        usage = stream.usage if stream is not None else self.usage
        if usage is not None:
            self._count_reported(record, usage, stream, count)
        elif self.request.operation.inside:
            record.token_source = "tokenizer"
        elif (self._at_work or self._committed) and attempt is not None and record.ending != "rejected":
            prompt, completion = (count.prompt, count.completion) if count is not None else (None, None)
            if prompt is not None and completion is not None:
                record.token_source = "tokenizer"
            record.prompt_tokens = self._reservation.prompt_tokens if prompt is None else prompt
            if self.request.operation.generates:
                record.completion_tokens = attempt.relayed_tokens if completion is None else completion
        prices = self._prices
        record.price = prices.text if prices is not None else None
        record.cost_pusd = cost_pusd(prices, record.prompt_tokens, record.completion_tokens, record.cached_tokens)

    def _count_reported(self, record: UsageRecord, usage: Usage, stream: EventStream | None, count: Count | None) -> None:
        """What the backend said; of the side that it did not say, or not to the end, what was counted or what is estimated."""
        prompt, completion, attempt = usage.prompt_tokens, usage.completion_tokens, self.attempt
        source = "backend"
        if attempt is not None and not self._answer_said(usage, stream):
            counted = count.completion if count is not None else None
            source = "estimate" if counted is None else "tokenizer"
            completion = max(completion or 0, attempt.relayed_tokens if counted is None else counted)
        if prompt is None:
            counted = count.prompt if count is not None else None
            if counted is None:
                source = "estimate"
            elif source == "backend":
                source = "tokenizer"
            prompt = self._reservation.prompt_tokens if counted is None else counted
        record.prompt_tokens = prompt
        record.completion_tokens = completion or 0
        record.token_source = source
        record.cached_tokens = min(usage.cached_tokens, prompt)
        record.reasoning_tokens = min(usage.reasoning_tokens, record.completion_tokens)

    def _unpark(self) -> None:
        if self._parked is not None:
            self._parked.forget()
            self._parked = None

    def _leave_slot(self) -> None:
        if self._slot:
            self._slot = False
            self.relay.slots.leave()
        elif self._waiting:
            self._waiting = False
            self.relay.slots.forget(self)

    # what must not happen

    def bug(self) -> None:
        """Called while an exception is handled: it ends this request, not the process."""
        logger.exception("request failed", request_id=self.request.id)
        if self.attempt is not None:
            self.attempt.abort()
        if self.over:
            return
        self.refuse(InternalError("The gateway failed on this request; its log says why, under the request id."))

    def log_cause(self, cause: BaseException) -> None:
        """A backend that lives in this process failed for a reason of its own. Its words are left out: they may quote the prompt."""
        place = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(cause.__traceback__)][-1:]
        kind = type(cause).__name__
        logger.error("backend failed", request_id=self.request.id, backend=self.backend_name, error=kind, place="".join(place))


_UNREMARKABLE: Final = frozenset(("ok", "4xx", "client_gone"))
# Outcomes that say nothing about a backend's health. 429: it rests for as long as it said.
_NO_VERDICT: Final = frozenset(
    ("4xx", "client_gone", "shutdown", "bug", "400", "422", "429", "stale", "loading", "failed", "no_memory", "too_large", "total_timeout")
)


def _bare(record: UsageRecord) -> UsageRecord:
    """What can be written down of a record that cannot be written as it is: no texts that came from outside, no absurd number."""
    bare = UsageRecord(record.request_id, record.started_at, record.operation, record.key_id, record.user_id, record.model, record.revision)
    bare.team_id, bare.attempts, bare.status, bare.ending = record.team_id, record.attempts, record.status, record.ending
    bare.prompt_tokens, bare.completion_tokens = _writable(record.prompt_tokens), _writable(record.completion_tokens)
    if bare.prompt_tokens == record.prompt_tokens and bare.completion_tokens == record.completion_tokens:
        bare.cost_pusd = min(_writable(record.cost_pusd), MAX_COST_PUSD)
    return bare


def _writable(number: int) -> int:
    return number if 0 <= number <= MAX_COST_PUSD else 0


def _overloaded() -> Overloaded:
    return Overloaded("The gateway runs as many requests as it may; try again shortly.", retry_after_s=1)


def _limit_error(refusal: Refusal) -> RateLimited:
    if refusal.kind in _BUDGETS:
        message = f"The {_BUDGETS[refusal.kind]} of this {refusal.whose} is spent."
        error: RateLimited = QuotaExhausted(message, retry_after_s=refusal.retry_after_s)
    elif refusal.final:
        limit = "tokens-per-day" if refusal.kind == "tokens_day" else "tokens-per-minute"
        message = f"This request needs more tokens than the {refusal.whose}'s {limit} limit ever allows; lower max_tokens or shorten it."
        error = RateLimited(message, retry=False)
    else:
        message = f"The limit of {_KINDS[refusal.kind]} of this {refusal.whose} is reached; try again later."
        error = RateLimited(message, retry_after_s=refusal.retry_after_s)
    error.headers = refusal.headers
    return error


_BUDGETS = {"budget": "budget", "token_budget": "token budget"}
_KINDS = {
    "requests": "requests per minute",
    "tokens": "tokens per minute",
    "requests_day": "requests per day",
    "tokens_day": "tokens per day",
    "concurrency": "concurrent requests",
}
