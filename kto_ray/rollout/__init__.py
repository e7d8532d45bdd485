"""How a challenger becomes champion: a state machine and the statistics that it may trust at any time."""
