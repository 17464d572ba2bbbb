"""One run of Alembic, without Alembic's globals: with them, two runs in a process mix their databases.

Alembic keeps context and operations in the globals alembic.context and alembic.op, for env.py and the
revisions. Another run of Alembic, in another thread or around ours, replaces them.
"""

from __future__ import annotations

import inspect
from contextvars import ContextVar
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

from alembic import context as process_wide
from alembic.operations import Operations
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from selene_core.store.logs import log_revision

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext, MigrationInfo, RevisionStep, StampStep

    Steps: TypeAlias = Callable[[Any, MigrationContext], Iterable[Any]]

_MIXED: Final = (
    "another run of Alembic in this process has taken this one's place. Nothing was changed by this one:"
    " call the functions of selene_core.migrations, which may run beside others, or one after the other"
)


class Run(EnvironmentContext):
    """The context of one run, for env.py. Its revisions get an `op` of their own.

    With `only_looks` env.py rolls everything back. `seen_waiting` is the content of the version table when
    another migration was found running; None if there was none, or if it could not be read.
    """

    def __init__(
        self, config: Config, script: ScriptDirectory, *, fn: Steps, only_looks: bool = False, **options: Any
    ) -> None:
        super().__init__(config, script, **options, fn=self._noting(fn))
        told = self.get_x_argument(as_dictionary=True).get("allow-data-loss") == "yes"
        # Revisions that drop rows look for it in op.get_context().opts.
        self.context_opts.setdefault("allow_data_loss", told or config.attributes.get("allow_data_loss"))
        self.only_looks = only_looks
        self.seen_waiting: tuple[str, ...] | None = None
        self._uncommitted: list[MigrationInfo] = []

    def start(self) -> None:
        """Run env.py with this context."""
        token = _STARTED.set(self)
        try:
            self.script.run_env()
        finally:
            _STARTED.reset(token)

    def run_migrations(self, **arguments: Any) -> None:
        """Run the steps, with operations that only this run's copies of the revisions see."""
        operations = Operations(self.get_context())
        for revision in self.script.walk_revisions():
            vars(revision.module)["op"] = operations
        self.get_context().run_migrations(**arguments)

    def log_steps(self) -> None:
        """Log the steps that are committed by now."""
        steps, self._uncommitted = self._uncommitted, []
        for step in steps:
            kind = "stamp" if step.is_stamp else "upgrade" if step.is_upgrade else "downgrade"
            log_revision(step.up_revision_id or "base", kind)

    def _noting(self, fn: Steps) -> Steps:
        @wraps(fn)
        def steps(heads: Any, context: MigrationContext) -> Iterator[RevisionStep | StampStep]:
            for step in fn(heads, context):
                yield step
                # Reached once the step is done, and committed if it has a transaction of its own.
                if not (self.only_looks or context.as_sql):
                    self._uncommitted.append(step.info)
                if context._transaction_per_migration:
                    self.log_steps()

        return steps


_STARTED: ContextVar[Run | None] = ContextVar("selene_core_alembic_run", default=None)


def current_run() -> Run:
    """Return the run for which env.py is being executed.

    Raises CommandError if Alembic's own command started it and another run has replaced its context.
    """
    script = _asking_script()
    started = _STARTED.get()
    if started is not None and started.script is script:
        return started
    found: EnvironmentContext | None = vars(process_wide).get("_proxy")
    if found is None or found.script is not script:
        raise CommandError(_MIXED)
    run = Run(found.config, script, **found.context_opts)
    # Another thread may still take the global for its own: it must not run our revisions in its database.
    found.context_opts["fn"] = _refuse
    return run


def _asking_script() -> ScriptDirectory | None:
    """Find the ScriptDirectory that executes env.py, in the stack: the globals may be another run's."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is ScriptDirectory.run_env.__code__:
            asking: ScriptDirectory = frame.f_locals["self"]
            return asking
        frame = frame.f_back
    return None


def _refuse(*_arguments: object) -> NoReturn:
    raise CommandError(_MIXED)
