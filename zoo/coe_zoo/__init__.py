"""Models and recorded predictions of tasks that coe-cascade finds through the entry points `coe.tasks`."""
