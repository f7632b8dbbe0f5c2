"""Errors of the frontier client, distinguished by their consequence for further requests."""


class FrontierError(ValueError):
    """One request got no answer; others may still succeed."""


class ModelUnavailableError(FrontierError):
    """The server does not know or serve the model; other models may still be available."""


class ServerUnavailableError(FrontierError):
    """The server did not answer within the retries; nothing was charged for this request."""


class UncertainRequestError(FrontierError):
    """The request was sent and its answer lost: it may have been charged, so it is not repeated."""


class MalformedReplyError(FrontierError):
    """The server's reply, charged and kept on disk, is unusable; the request is not repeated."""


class FrontierStopError(FrontierError):
    """No further request can be sent. All answers so far are on disk."""


class KeyRefusedError(FrontierStopError):
    """There is no key, or the server does not accept it."""


class NoCreditError(FrontierStopError):
    """The account has no credit left."""


class CostCapError(FrontierStopError):
    """The next request could exceed the cost cap, or an answer cost more than its price allows."""


class StorageError(FrontierStopError):
    """The folder of answers cannot be written or read, so nothing may be paid for."""
