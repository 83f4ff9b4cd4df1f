"""A job of many ranks, as each of them takes part in it: given to a governor in the place of a ledger.

    with Governor(program, model, optimizer, ledger=None, group=group, job=Job("job", signer)) as governor:
        ...

Every rank writes its own ledger in the folder, which all of them share. Rank 0 binds them, on a thread of its
own and from the files alone: no rank waits for another's evidence.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gradwarden.policy.errors import GradwardenError
from gradwarden.runtime.commitments import Committer
from gradwarden.runtime.errors import JobError, LedgerError
from gradwarden.runtime.jobs.binder import Binder, check_terms, job_opening, job_terms
from gradwarden.runtime.jobs.layout import Placement, log_path, rank_origin, rank_path, secret_path
from gradwarden.runtime.ledger.keys import PublicKey, Signer
from gradwarden.runtime.ledger.ledger import Ledger
from gradwarden.runtime.ledger.writer import Durability

LAG_FACTOR = 3
"""By default a rank may be behind by so many intervals at a binding: heads are signed and read in passing."""


class Job:
    """One rank's part in a job.

    folder: shared by all ranks; made where it is missing. signer: of this rank's ledger, on rank 0 also of
    the log of logs. every: the steps from one binding to the next. lag: how many steps a rank's signed head
    may be behind at a binding before a verifier reports it; None: three times `every`. placement: where an
    example may be. `by_example` gives each a home (`Governor.at_home`), as policies that count exposures
    need; `anywhere` is for all others. keys: others that may sign the ledgers, see `Ledger.open`. binds:
    whether rank 0 binds the ranks; if not, another process does while the job goes on (`gradwarden bind`).
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        signer: Signer,
        *,
        every: int = 100,
        lag: int | None = None,
        placement: Placement = "anywhere",
        durability: Durability = "group",
        keys: Sequence[PublicKey] = (),
        binds: bool = True,
    ) -> None:
        self.folder = Path(folder)
        self.placement: Placement = placement
        self.every = every
        self.lag = LAG_FACTOR * every if lag is None else lag
        self.name = ""
        self.rank = self.ranks = 0
        self._binds = binds
        self._signer, self._durability, self._keys = signer, durability, tuple(keys)
        self._ledger: Ledger | None = None
        self._binder: Binder | None = None
        self._binding = threading.Lock()
        self._due = threading.Event()
        self._over = False
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None

    # --- taking part ---------------------------------------------------------------------------------------

    def begin(self, ranks: int, secret: Path | None) -> str:
        """Open the log of logs, on rank 0; return the job's name. secret: of the commitments, see `Governor`.

        Raises LedgerError where that cannot be done, JobError for a job with other terms.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise JobError(f"cannot make the folder `{self.folder}`: {error.strerror}") from error
        terms = job_terms(ranks=ranks, every=self.every, lag=self.lag, placement=self.placement)
        Committer.load_or_create(self.secret(secret))
        if not self._binds and log_path(self.folder).exists():
            opened = job_opening(self.folder)
            check_terms(opened, terms)
            name: str = opened["origin"]
            return name
        binder = Binder.open(self.folder, self._signer, durability=self._durability, keys=self._keys, **terms)
        if self._binds:
            self._binder = binder
            self._thread = threading.Thread(target=self._bind_when_due, name="gradwarden-job", daemon=True)
            self._thread.start()
        else:
            binder.close()
        return binder.job

    def join(self, name: str, rank: int, ranks: int) -> Ledger:
        """Open this rank's ledger. Raises LedgerError."""
        self.name, self.rank, self.ranks = name, rank, ranks
        path = rank_path(self.folder, rank)
        if not log_path(self.folder).exists() or job_opening(self.folder)["origin"] != name:
            raise JobError(
                f"rank {rank} does not see the job in the folder `{self.folder}`",
                help="all ranks of a job write into one folder: use one that they share",
            )
        origin = rank_origin(name, rank)
        self._ledger = Ledger.open(path, self._signer, self._durability, origin, self._keys)
        return self._ledger

    def secret(self, given: Path | None) -> Path:
        """Return where the secret of the commitments is. All ranks have the same."""
        return given or secret_path(self.folder)

    def member(self, weights: str) -> dict[str, Any]:
        """Return this rank's place, as its ledger's opening names it. weights: the digest of the first."""
        return {
            "id": self.name,
            "rank": self.rank,
            "ranks": self.ranks,
            "placement": self.placement,
            "weights": weights,
        }

    def check_member(self, opened: Mapping[str, Any]) -> None:
        """Raise JobError where a ledger that is to be resumed is not this rank's in this job."""
        found = opened.get("job")
        due = self.member("")
        if found is None or any(found[name] != due[name] for name in due if name != "weights"):
            name = rank_path(self.folder, self.rank).name
            raise JobError(
                f"`{name}` is not the ledger of rank {self.rank} of {self.ranks}",
                help="a job is resumed with as many ranks; with others begin a new one in another folder",
            )

    # --- binding -------------------------------------------------------------------------------------------

    def stepped(self, step: int) -> None:
        """Take note that the step before `step` has its outcome; sign and bind where that is due.

        Returns at once. Raises LedgerError where an earlier binding failed.
        """
        self._check()
        if step % self.every == 0:
            self.sign()

    def sign(self) -> None:
        """Have this rank's ledger signed as it is, and the ranks bound; wait for neither."""
        if self._ledger is not None:
            self._ledger.sign()
        self._due.set()

    def bind(self) -> None:
        """Bind what all ranks have signed, on rank 0; do nothing on the others. Raises LedgerError."""
        self._check()
        if self._binder is not None:
            with self._binding:
                self._binder.bind()

    def seal(self) -> None:
        """Bind the ends of all ledgers and seal the job, on rank 0. Raises LedgerError."""
        self._stop()
        self._check()
        if self._binder is not None:
            self._binder.seal()

    def close(self) -> None:
        """Leave the job unsealed, so that it can be resumed, with what is signed bound. Safe to repeat."""
        self._stop()
        if self._ledger is not None:
            with suppress(LedgerError):
                self._ledger.close()
        if self._binder is not None:
            with suppress(LedgerError):
                self._binder.bind()
            self._binder.close()

    def _check(self) -> None:
        failure = self._failure
        if failure is None:
            return
        said = failure.message if isinstance(failure, GradwardenError) else f"`{type(failure).__name__}`"
        raise JobError(f"the ranks can no longer be bound: {said}") from failure

    def _bind_when_due(self) -> None:
        """Bind whenever it is due, until the job is over or a binding fails. On a thread of its own."""
        assert self._binder is not None
        try:
            while self._due.wait() and not self._over:
                self._due.clear()
                with self._binding:
                    self._binder.bind()
        except BaseException as failure:  # whatever it is, the next step must be refused
            self._failure = failure

    def _stop(self) -> None:
        self._over = True
        self._due.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
