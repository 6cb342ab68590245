"""Battles for tests."""


def row(uuid="1", preference="A", a=1.0, b=0.0, **cells):
    return {"battle_uuid": uuid, "preference": preference, "s_a": a, "s_b": b, **cells}
