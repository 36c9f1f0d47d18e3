"""Every refusal and failure that a client can see. Each class fixes HTTP status, OpenAI `type` and `code`.

    GatewayError
    ├── InvalidRequest           400 invalid_request_error       bad JSON, wrong type, missing field; `param` names the field
    │   ├── BodyTooLarge         413 request_too_large
    │   ├── HeadersTooLarge      431 headers_too_large
    │   └── UnsupportedEncoding  415 unsupported_encoding        a compressed request body
    ├── Unauthenticated          401 invalid_api_key             no, malformed, unknown, revoked or expired credential (one answer for all)
    ├── Forbidden                403 permission_denied           known caller, right missing
    ├── NotFound                 404 not_found
    │   └── ModelNotFound        404 model_not_found             unknown, or hidden from this key
    ├── MethodNotAllowed         405 method_not_allowed
    ├── RequestTimeout           408 request_timeout             the request's body did not come in time
    ├── Conflict                 409 conflict                    the state does not allow it (name taken, revision moved)
    ├── RateLimited              429 rate_limit_exceeded         requests, tokens or concurrency; has `retry_after_s`
    │   └── QuotaExhausted       429 insufficient_quota          budget spent; not to be retried
    ├── NotSupported             501 not_supported               e.g. tokenize without a known tokenizer
    ├── UpstreamFailed           502 upstream_error              refused, reset, garbage, 5xx, or our credential refused there
    ├── Unavailable              503 service_unavailable
    │   ├── NoBackend            503 no_backend_available        drained, or every backend down
    │   ├── ModelLoading         503 model_loading
    │   ├── UpstreamBusy         503 upstream_unavailable        the backend itself said 503 or 529
    │   ├── Overloaded           503 overloaded                  admission limit
    │   ├── LedgerFull           503 ledger_full                 the request could not be accounted for
    │   └── ShuttingDown         503 shutting_down
    ├── UpstreamTimeout          504 upstream_{connect,first_byte,idle,total}_timeout
    └── InternalError            500 internal_error              a bug; the log has the traceback, the client only the request id

`message` is written for the caller: it says what to do, and holds no key, prompt, address or traceback.
"""

from __future__ import annotations

from typing import Any


class GatewayError(Exception):
    """Base. `headers` are whole header lines, added to the answer as they are; `retry` sets `x-should-retry` where it is not None."""

    status = 500
    type = "api_error"
    code: str = "internal_error"
    retry: bool | None = None
    headers: bytes = b""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        retry: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        if code is not None:
            self.code = code
        if retry is not None:
            self.retry = retry

    def body(self) -> dict[str, Any]:
        """The OpenAI error object: all four keys, always."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class InvalidRequest(GatewayError):
    status, type, code = 400, "invalid_request_error", "invalid_request"


class BodyTooLarge(InvalidRequest):
    status, code = 413, "request_too_large"


class HeadersTooLarge(InvalidRequest):
    status, code = 431, "headers_too_large"


class UnsupportedEncoding(InvalidRequest):
    status, code = 415, "unsupported_encoding"


class Unauthenticated(GatewayError):
    status, type, code = 401, "invalid_request_error", "invalid_api_key"


class Forbidden(GatewayError):
    status, type, code = 403, "permission_error", "permission_denied"


class NotFound(GatewayError):
    status, type, code = 404, "invalid_request_error", "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(GatewayError):
    status, type, code = 405, "invalid_request_error", "method_not_allowed"


class RequestTimeout(GatewayError):
    status, type, code = 408, "invalid_request_error", "request_timeout"


class Conflict(GatewayError):
    status, type, code = 409, "invalid_request_error", "conflict"


class RateLimited(GatewayError):
    status, type, code = 429, "rate_limit_exceeded", "rate_limit_exceeded"


class QuotaExhausted(RateLimited):
    type, code, retry = "insufficient_quota", "insufficient_quota", False


class NotSupported(GatewayError):
    status, type, code = 501, "invalid_request_error", "not_supported"


class UpstreamFailed(GatewayError):
    status, type, code = 502, "api_error", "upstream_error"


class Unavailable(GatewayError):
    status, type, code = 503, "api_error", "service_unavailable"


class NoBackend(Unavailable):
    code = "no_backend_available"


class ModelLoading(Unavailable):
    code = "model_loading"


class UpstreamBusy(Unavailable):
    code = "upstream_unavailable"


class Overloaded(Unavailable):
    code = "overloaded"


class LedgerFull(Unavailable):
    code = "ledger_full"


class ShuttingDown(Unavailable):
    code = "shutting_down"


class UpstreamTimeout(GatewayError):
    """`code` is always given: upstream_connect_timeout, upstream_first_byte_timeout, upstream_idle_timeout, upstream_total_timeout."""

    status, type, code = 504, "api_error", "upstream_total_timeout"


class InternalError(GatewayError):
    status, type, code = 500, "api_error", "internal_error"
