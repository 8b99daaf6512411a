"""A service that the gateway calls: its channel, its name in errors, and streams of paired requests and responses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, Protocol, TypeVar

import grpc
import grpc.aio

from services.rpckit.client_tls import ClientTls, open_channel
from services.rpckit.options import CHANNEL_OPTIONS
from services.rpckit.rich_status import from_rpc_error
from services.rpckit.status import DeadlineExceeded, NotReady, ServiceError

Metadata = tuple[tuple[str, str], ...]


class Peer:
    """One service at one address. The channel connects when it is first used, and again after a break."""

    def __init__(
        self, name: str, address: str, tls: ClientTls | None = None, *, server_name: str | None = None
    ) -> None:
        """`name` is what errors call the service, for example `worker`; `server_name` as for `open_channel`."""
        self.name = name
        self.address = address
        self.channel: grpc.aio.Channel = open_channel(address, tls, CHANNEL_OPTIONS, server_name=server_name)

    async def close(self) -> None:
        """End all calls and disconnect."""
        await self.channel.close()

    def away(self, what: str) -> NotReady:
        """Return the error of a service that is not there."""
        return NotReady(
            f"the {self.name} service at {self.address} {what}",
            service=self.name,
            address=self.address,
        )

    def translate(self, error: grpc.aio.AioRpcError) -> ServiceError:
        """Return what the service said, naming it where it could not answer."""
        said = from_rpc_error(error)
        if isinstance(said, NotReady):
            if "service" in said.metadata:
                return self.away(f"is not ready: {said.message}")
            return self.away(f"does not answer; try again, or see whether it runs ({said.message})")
        if isinstance(said, DeadlineExceeded) and not said.metadata:
            return self.late()
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return ServiceError(f"what listens at {self.address} is no {self.name} service: {said.message}")
        return said

    def late(self) -> DeadlineExceeded:
        """Return the error of an answer that did not come in time."""
        return DeadlineExceeded(
            f"the {self.name} service at {self.address} did not answer in time", service=self.name, address=self.address
        )


class _Paired(Protocol):
    @property
    def request_id(self) -> int: ...


Response = TypeVar("Response", bound=_Paired)


class PairedStream(Generic[Response]):
    """One bidirectional stream whose responses name their request.

    Opened by the first request. When the stream breaks, every request in flight fails with the reason, and so does
    every later one.
    """

    def __init__(
        self, peer: Peer, open_call: Callable[[AsyncIterator[Any]], Any], *, response_timeout_s: float
    ) -> None:
        """Allow a response `response_timeout_s`; the deadline of the whole stream is `open_call`'s matter."""
        self._peer = peer
        self._open_call = open_call
        self._response_timeout_s = response_timeout_s
        self._outgoing: asyncio.Queue[Any] = asyncio.Queue()
        self._waiting: dict[int, tuple[asyncio.Future[Response], asyncio.TimerHandle]] = {}
        self._next_id = 1
        self._call: Any = None
        self._reader: asyncio.Task[None] | None = None
        self._broken: ServiceError | None = None

    def send(self, make_request: Callable[[int], Any]) -> asyncio.Future[Response]:
        """Send what `make_request(request_id)` makes; the future has the response."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Response] = loop.create_future()
        if self._broken is not None:
            future.set_exception(self._broken)
            return future
        if self._reader is None:
            self._call = self._open_call(self._requests())
            self._reader = loop.create_task(self._read())
        request_id, self._next_id = self._next_id, self._next_id + 1
        timer = loop.call_later(self._response_timeout_s, self._give_up, request_id)
        self._waiting[request_id] = future, timer
        self._outgoing.put_nowait(make_request(request_id))
        return future

    async def close(self) -> None:
        """End the stream; what is in flight fails."""
        if self._reader is None:
            return
        self._call.cancel()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def _requests(self) -> AsyncIterator[Any]:
        while (request := await self._outgoing.get()) is not None:
            yield request

    async def _read(self) -> None:
        broken: ServiceError = self._peer.away("closed the stream; try again")
        try:
            async for response in self._call:
                future, timer = self._waiting.pop(response.request_id, (None, None))
                if future is None or timer is None:
                    continue  # given up meanwhile
                timer.cancel()
                if not future.done():
                    future.set_result(response)
        except grpc.aio.AioRpcError as error:
            broken = self._peer.translate(error)
        finally:
            self._broken = broken
            for future, timer in self._waiting.values():
                timer.cancel()
                _fail(future, broken)
            self._waiting.clear()
            # gRPC's task that reads the requests of a call is cancelled with the call, but outlives one that ends.
            self._outgoing.put_nowait(None)

    def _give_up(self, request_id: int) -> None:
        future, _ = self._waiting.pop(request_id)
        _fail(future, self._peer.late())


Plain = TypeVar("Plain")


def converted(
    source: asyncio.Future[Response],
    convert: Callable[[Response], Plain],
    blame: Callable[[Exception], Exception] = lambda error: error,
) -> asyncio.Future[Plain]:
    """Return a future of what `convert` makes of a response; what `convert` raises is its error, as `blame` sees it."""
    target: asyncio.Future[Plain] = source.get_loop().create_future()

    def settle(done: asyncio.Future[Response]) -> None:
        if target.done():
            return
        try:
            target.set_result(convert(done.result()))
        except Exception as error:
            _fail(target, blame(error))

    source.add_done_callback(settle)
    return target


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # seen: whoever gave up on it does not ask
