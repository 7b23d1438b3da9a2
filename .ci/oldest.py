"""setup.cfg -> constraints that hold every core dependency at the oldest version that it allows."""

import configparser
import re
import sys


def oldest(setup_cfg: str) -> list[str]:
    """`name==version` for each line `name >= version` of install_requires."""
    config = configparser.ConfigParser()
    config.read_string(setup_cfg)
    lines = config["options"]["install_requires"].split("\n")
    found = [re.fullmatch(r"([\w.-]+) >= ([\w.]+)", line.strip()) for line in lines]
    return [f"{match[1]}=={match[2]}" for match in found if match]


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        print(*oldest(file.read()), sep="\n")
