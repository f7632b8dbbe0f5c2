"""What can go wrong between here and a frontier model, told apart by what it means for the next request."""


class FrontierError(ValueError):
    """One request brought no answer. Others may."""


class ModelUnavailableError(FrontierError):
    """The server knows no such model, or does not serve it; other models may be asked."""


class ServerUnavailableError(FrontierError):
    """The server did not answer within the retries; nothing was paid for this request."""


class UncertainRequestError(FrontierError):
    """The request was sent and its answer was lost: it may have been paid for, so it is not sent again."""


class MalformedReplyError(FrontierError):
    """The server's reply, paid for and kept on disk, cannot be used; it is not asked for again."""


class FrontierStopError(FrontierError):
    """No further request can be sent. What was earned so far is on disk."""


class KeyRefusedError(FrontierStopError):
    """There is no key, or the server does not accept it."""


class NoCreditError(FrontierStopError):
    """The account has no credit left."""


class CostCapError(FrontierStopError):
    """The next request could cost more than is left below the cap, or more than its price says."""


class StorageError(FrontierStopError):
    """The folder of answers cannot be written or read, so that nothing may be paid for."""
