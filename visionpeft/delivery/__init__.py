"""From settings to a task and from a trained task to what a user takes away: one module a task."""

from visionpeft.delivery.result import RunResult as RunResult
