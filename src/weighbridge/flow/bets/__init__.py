"""Bets: guesses, who predicts them, what was learned of them, and the gate that decides whether one pays."""
