"Eight masks that agents must find: round, long, cornered, concave, in parts, with a hole"

import torch


def shapes(size: int = 128) -> dict[str, torch.Tensor]:
    c = size / 128
    y, x = torch.meshgrid(
        torch.arange(float(size)) / c - 64, torch.arange(float(size)) / c - 64, indexing="ij"
    )
    r, angle = (x * x + y * y).sqrt(), torch.atan2(y, x)
    box = (x.abs() < 40) & (y.abs() < 36)
    return {
        "disc": r < 30,
        "ellipse": (x / 48) ** 2 + (y / 16) ** 2 < 1,
        "square": (x.abs() < 30) & (y.abs() < 30),
        "U": box & ~((x.abs() < 22) & (y < 16)),
        "star": r < 32 + 12 * torch.cos(5 * angle),
        "two discs": ((x + 30) ** 2 + y**2 < 18**2) | ((x - 30) ** 2 + (y - 8) ** 2 < 22**2),
        "ring": (r < 40) & ~((x - 4) ** 2 + y**2 < 18**2),
        "crescent": (r < 40) & ~((x - 22) ** 2 + y**2 < 34**2),
    }
