"""Commands that train networks in a second or two."""

TINY = ["--model=lenet-300-100", "--width=0.1", "--epochs=1"]
SWEEP = ["sweep", "--model=lenet-300-100", "--width=0.1", "--epochs=1", "--methods=random,snip", "--seeds=2"]
LOTTERY = ["lottery", "--model=lenet-300-100", "--width=0.1", "--epochs=2", "--levels=2", "--rate=0.5", "--seeds=1"]
