"""How much is measured: the sizes for a CPU, for a GPU, and tiny ones that only show that everything runs."""

from dataclasses import dataclass, replace

from breakhis_pl.data.breakhis import IMAGE_SIZE

NETWORKS = ("resnet18", "wide_resnet50", "resnext50")


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes of everything that is measured.

    Attributes:
        name: "cpu" or "gpu".
        is_tiny: Whether figures mean nothing.
        drawn_size: Width and height of the synthetic images, pixels.
        drawn_per_patient: Number of them per patient; None for all published.
        rounds: Of every measurement, after one to warm up.
        networks: Measured in steps and end to end.
        batch_sizes: Likewise.
        image_size: Side of the images there, pixels.
        n_images: End to end, train and test together.
        split: Of these images, a value of `data.split`.
        block: Epochs between two rounds of the limit; the first of each is not counted.
        n_plain: Networks of `networks`, from the first, that plain Lightning trains too.
        limit_s: Seconds that a round of the step limit lasts about.
        compile_budget_s: No compilation is begun after so many seconds of compilation.
        matrix_side: Of the product whose speed counts as the peak.
        loader_size: Side of the images of the data path, pixels.
        n_loader_images: Of a pass of the data path.
        own_passes: Passes of our data path in a round; one is too short to time.
        n_store_images: Of each round of building a store.
        n_decoded: Files that one thread decodes in each round.
        growth: Numbers of images, ascending; the last should be a multiple of the first.
        growth_phases: What is measured with each of them, of `growth.PHASES`.
        sweep: Overrides of the command that is timed as a whole; None for none.
    """

    name: str
    is_tiny: bool
    drawn_size: tuple[int, int]
    drawn_per_patient: int | None
    rounds: int
    networks: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    image_size: int
    n_images: int
    split: str
    block: int
    n_plain: int
    limit_s: float
    compile_budget_s: float
    matrix_side: int
    loader_size: int
    n_loader_images: int
    own_passes: int
    n_store_images: int
    n_decoded: int
    growth: tuple[int, ...]
    growth_phases: tuple[str, ...]
    sweep: tuple[str, ...] | None

    def tiny(self) -> "Plan":
        """The same with sizes that take seconds on a CPU."""
        return replace(
            self,
            is_tiny=True,
            drawn_size=(70, 46),
            drawn_per_patient=1,
            rounds=1,
            networks=self.networks[:1],
            batch_sizes=tuple(8 * factor for factor, _ in enumerate(self.batch_sizes, start=1)),
            image_size=32,
            n_images=40,
            split="ratio",
            limit_s=0.01,
            compile_budget_s=0.0,
            matrix_side=64,
            loader_size=32,
            n_loader_images=24,
            own_passes=1,
            n_store_images=16,
            n_decoded=8,
            growth=(20, 40),
            growth_phases=(self.growth_phases[0], self.growth_phases[-1]),
            sweep=None if self.sweep is None else ("model=resnet18,resnext50", "data.image_size=32", "model.epochs=1"),
        )


def cpu_plan() -> Plan:
    """Under ten minutes on two cores."""
    return Plan(
        name="cpu",
        is_tiny=False,
        drawn_size=IMAGE_SIZE,
        drawn_per_patient=None,
        rounds=5,
        networks=NETWORKS[:1],
        batch_sizes=(32,),
        image_size=64,
        n_images=512,
        split="ratio",
        block=2,
        n_plain=1,
        limit_s=1.0,
        compile_budget_s=1.0,
        matrix_side=2048,
        loader_size=224,
        n_loader_images=256,
        own_passes=5,
        n_store_images=512,
        n_decoded=128,
        growth=(503, 1006, 2012),
        growth_phases=("store", "opening", "data path"),
        sweep=None,
    )


def cuda_plan() -> Plan:
    """Under eight minutes on a data-center GPU with sixteen cores."""
    return replace(
        cpu_plan(),
        name="gpu",
        networks=NETWORKS,
        batch_sizes=(32, 256),
        image_size=224,
        n_images=2013,
        split="official",
        n_plain=3,
        limit_s=0.15,
        compile_budget_s=10.0,
        matrix_side=8192,
        n_loader_images=2013,
        own_passes=10,
        n_store_images=2013,
        n_decoded=256,
        growth_phases=("store", "opening", "data path", "training"),
        sweep=("model=resnet18,wide_resnet50,resnext50",),
    )
