"""What the cluster is and what to do next. Pure: events in, state and actions out."""
