"""What an upgrade of the index does to the apps that ask it: a plan file in, a forecast out."""

from hetero.backfill._forecast import (
    GONE,
    WEEK_S,
    Forecast,
    Order,
    Outlook,
    Point,
    Way,
    duration_weeks,
    estimated,
    forecast,
    timeline,
)
from hetero.backfill._plan import LONGEST_WEEKS, Cohort, Generation, Index, Plan, load

__all__ = [
    "GONE",
    "LONGEST_WEEKS",
    "WEEK_S",
    "Cohort",
    "Forecast",
    "Generation",
    "Index",
    "Order",
    "Outlook",
    "Plan",
    "Point",
    "Way",
    "duration_weeks",
    "estimated",
    "forecast",
    "load",
    "timeline",
]
