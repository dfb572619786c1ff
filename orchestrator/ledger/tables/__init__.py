"""The ledger's tables.

`jobs` and `events` name their plan without a foreign key: they are written in bulk under the plan row's own lock, and
the check would cost a third of every bulk insert.

States are text: the life cycles in `domain` say which there are, and a new one needs no migration. Every time is
`timestamptz` by the database's own clock, so that no two machines' clocks are ever compared.
"""

from orchestrator.ledger.tables.base import NO_WAVE as NO_WAVE
from orchestrator.ledger.tables.base import UNFINISHED_PLANS as UNFINISHED_PLANS
from orchestrator.ledger.tables.base import Base as Base
from orchestrator.ledger.tables.jobs import Attempt as Attempt
from orchestrator.ledger.tables.jobs import HookCall as HookCall
from orchestrator.ledger.tables.jobs import Job as Job
from orchestrator.ledger.tables.jobs import JobCount as JobCount
from orchestrator.ledger.tables.plans import BudgetGroup as BudgetGroup
from orchestrator.ledger.tables.plans import Event as Event
from orchestrator.ledger.tables.plans import Plan as Plan
from orchestrator.ledger.tables.plans import Wave as Wave
from orchestrator.ledger.tables.servers import Cloud as Cloud
from orchestrator.ledger.tables.servers import Hold as Hold
from orchestrator.ledger.tables.servers import LastRebuild as LastRebuild
from orchestrator.ledger.tables.servers import Outage as Outage
from orchestrator.ledger.tables.servers import Project as Project
from orchestrator.ledger.tables.service import Lease as Lease
from orchestrator.ledger.tables.service import Process as Process
from orchestrator.ledger.tables.service import Token as Token
