"""Where the services' images come from: pulled or built when they are needed, and asked what is in them."""

from __future__ import annotations

import contextlib
import re
import secrets
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import Struct

from devstack import builds, console
from devstack.choices import Choices
from devstack.container import ContainerContext
from devstack.errors import StackError, UsageError
from devstack.providers import Programs
from devstack.runtimes import Inside, ServiceSpec
from devstack.runtimes.containers import BASE, Containers
from devstack.settings import Settings
from devstack.shell import Command

POSTGRES = """
set -e
bin=$(dirname "$(readlink -f "$(command -v postgres)")")
"$bin/postgres" --version
echo "$bin"
share=$(pg_config --sharedir) lib=$(pg_config --pkglibdir)
[ -e "$lib/pg_stat_statements.so" ] && [ -e "$lib/auto_explain.so" ] && echo yes || echo no
cd "$share/extension" && ls -- *.control
"""
"""Asked of an image: what PostgreSQL it has, where, whether it counts statements, and its extensions."""

UNKNOWN_POSTGRES, UNKNOWN_PGBOUNCER = "17.0", "1.18.0"
"""Before an image was asked: for a dry run, and for who looks at a stack that never ran."""

OFFLINE = "without a registry: inv dev.images --save FILE on a machine that has the images, then --load FILE here"


class Wanted(Struct, frozen=True):
    """The image of a service: one that a setting names, or, with ``build``, one of our own."""

    label: str
    name: str
    setting: str
    build: builds.Build | None = None


class Images:
    """The images of one stack."""

    def __init__(
        self,
        context: ContainerContext,
        settings: Settings,
        chosen: Callable[[], Choices],
        choose: Callable[..., None],
    ) -> None:
        self.context = context
        self.settings = settings
        self._chosen = chosen
        self._choose = choose
        assert isinstance(context.runtime, Containers)
        self.engine = context.runtime
        self._ids: dict[str, str] = {}
        """What the engine said of images that nobody has asked for since."""

    # which

    def of_db(self) -> Wanted:
        return Wanted("db", self.settings.db.image, "db.image")

    def of_pgb(self) -> Wanted:
        return self._named_or("pgb", self.settings.pgb.image, lambda: builds.pgbouncer(self.settings))

    def of_api(self) -> Wanted:
        return self._named_or("api", self.settings.api.image, lambda: builds.api(self.settings))

    @staticmethod
    def _named_or(label: str, name: str, build: Callable[[], builds.Build]) -> Wanted:
        made = None if name else build()
        return Wanted(label, made.tag if made else name, f"{label}.image", made)

    # having them

    def ensure(self, wanted: Wanted) -> str:
        """Have an image, pulled or built if need be; its id, which is empty in a dry run without it.

        :raises StackError: it is not here, and can't be pulled or built.
        """
        if found := self.id_of(wanted.name):
            return found
        if wanted.build:
            return self._build(wanted.build)
        console.note(f"pulling {wanted.name} (once)")
        try:
            self.context.run(self.engine.pull(wanted.name), f"pull the image {wanted.name}")
        except StackError as error:
            raise StackError(
                f"there is no image {wanted.name} here, and it can't be pulled",
                why=f"{wanted.setting} names it, from {self.settings.origin(wanted.setting)}",
                evidence=error.evidence,
                fix=[OFFLINE, f"or correct {wanted.setting}"],
            ) from None
        return self.id_of(wanted.name)

    def questions(self, wanted: Wanted) -> Sequence[Command]:
        """What :meth:`ensure` will read first."""
        return [] if wanted.name in self._ids else [self.engine.images(self._names())]

    def id_of(self, image: str) -> str:
        """The engine's own name for an image's content; empty if it has none of that name.

        All images are asked for at once, which takes as long as one; each answer serves once.
        """
        names = self._names()
        if image not in self._ids and image in names:
            answer = self.context.read(self.engine.images(names))
            self._ids = dict(zip(names, self.engine.image_ids(answer.stdout), strict=True)) if answer.ok else {}
        if image in self._ids:
            return self._ids.pop(image)
        answer = self.context.read(self.engine.images([image]))  # another one may be missing
        return self.engine.image_ids(answer.stdout)[0] if answer.ok else ""

    def _names(self) -> list[str]:
        """All services' images, but those that nobody can name."""
        names = []
        for of in (self.of_db, self.of_pgb, self.of_api):
            with contextlib.suppress(UsageError):
                names.append(of().name)
        return list(dict.fromkeys(names))

    def forget(self) -> None:
        """Ask the engine again."""
        self._ids.clear()

    def ask(self, image: str, script: str, what: str) -> list[str]:
        """The lines that a script prints in a container of an image.

        :raises StackError: it does not run there.
        """
        spec = ServiceSpec(
            name=f"nv-look-{secrets.token_hex(4)}",
            argv=["/bin/sh", "-c", script],
            cwd=Path("/"),
            inside=Inside(image=image, memory_mb=256, network=False),
        )
        with self.context.one_off(spec) as command:
            result = self.context.read(command)
        if not result.ok:
            lines = (result.stderr or result.stdout).strip().splitlines()[-10:]
            wrong = any("exec format error" in line.lower() for line in lines)
            raise StackError(
                f"{what} does not run from the image {image}",
                why="the image is for another processor" if wrong else "",
                evidence=[self.context.mask(line) for line in lines],
                fix="take an image for this machine's processor" if wrong else "correct the image's name",
            )
        return result.stdout.splitlines()

    # what is in them: recorded, since asking takes a container

    def postgres(self, *, start: bool = False) -> Programs:
        """The PostgreSQL of db.image, as recorded; before a ``start`` the image is had, and asked if it is another now.

        :raises StackError: it can't be had, or will not do.
        """
        wanted, chosen = self.of_db(), self._chosen()
        image = wanted.name
        name, _, known = chosen.postgres_image.partition(" ")
        recorded = Programs(
            Path(chosen.postgres_bin),
            chosen.postgres_version or UNKNOWN_POSTGRES,
            tracks_statements=bool(chosen.tracks_statements),
            image=image,
        )
        if not start:
            return recorded
        here = self.ensure(wanted)
        fits = set(self.settings.db.extensions) <= set(chosen.extensions)
        if (name == image and here == known and fits) or self.context.dry:
            return recorded
        found = self._ask_postgres(image)
        self._choose(
            extensions=self.settings.db.extensions,
            postgres_bin=str(found.bin),
            postgres_version=found.version,
            postgres_image=f"{image} {here}",
            tracks_statements=found.tracks_statements,
        )
        return found

    def _ask_postgres(self, image: str) -> Programs:
        version, folder, tracks, *controls = [*self.ask(image, POSTGRES, "PostgreSQL"), "", "", ""]
        match = re.search(r"\) (\d+(\.\d+)?)", version)
        extensions = {name.removesuffix(".control") for name in controls}
        missing = [name for name in self.settings.db.extensions if name not in extensions]
        if match is None or missing:
            raise StackError(
                f"the image {image} can't be used",
                why=f"it has no extension {', '.join(missing)}" if match else f"its PostgreSQL says {version!r}",
                fix="set db.image to one that has them, such as pgvector/pgvector:pg17; or correct db.extensions",
            )
        return Programs(Path(folder), match[1], tracks_statements=tracks == "yes", image=image)

    def pgbouncer(self, *, start: bool = False) -> Programs:
        """The PgBouncer of pgb.image, or of the one built here; the same way.

        :raises StackError: it can't be had, or has none.
        """
        wanted, chosen = self.of_pgb(), self._chosen()
        image = wanted.name
        name, _, known = chosen.pgbouncer.partition(" ")
        recorded = Programs(Path(), chosen.pgbouncer_version or UNKNOWN_PGBOUNCER, image=image)
        if not start:
            return recorded
        here = self.ensure(wanted)
        if (name == image and here == known) or self.context.dry:
            return recorded
        said = "\n".join(self.ask(image, "pgbouncer --version", "PgBouncer"))
        match = re.search(r"PgBouncer (\d+\.\d+(\.\d+)?)", said)
        if match is None:
            raise StackError(f"the image {image} has no PgBouncer", why=f"it says {said[:200]!r}", fix="set pgb.image")
        self._choose(pgbouncer=f"{image} {here}", pgbouncer_version=match[1])
        return Programs(Path(), match[1], image=image)

    def api(self, *, start: bool = False) -> str:
        """The name of api.image, or of the one built here for the application.

        :raises StackError: it can't be had.
        """
        wanted = self.of_api()
        if start:
            self.ensure(wanted)
        return wanted.name

    # all of them, for a machine without a registry

    def all(self) -> list[Wanted]:
        """Every service's."""
        return [self.of_db(), self.of_pgb(), self.of_api()]

    def listing(self) -> list[tuple[str, str, str]]:
        """Each service's label, image, and its id, which is empty where the engine does not have it."""
        return [(wanted.label, wanted.name, self.id_of(wanted.name)) for wanted in self.all()]

    def save(self, output: str) -> None:
        """Write all images into one file, those that are missing pulled or built before.

        :raises StackError: one can't be had, or the file not be written.
        """
        path = Path(output).expanduser().absolute()
        if path.exists() or not path.parent.is_dir():
            why = "it exists" if path.exists() else f"there is no folder {path.parent}"
            raise UsageError(f"{path} can't be written", why=why, fix="name another file with --save")
        wanted = self.all()
        for one in wanted:
            self.ensure(one)
        if by_digest := [f"{one.name} in {one.setting}" for one in wanted if "@" in one.name]:
            console.note(
                f"{' and '.join(by_digest)} {'is' if len(by_digest) == 1 else 'are'} named by digest, which the engines"
                " do not keep in a file: have a tag there, on this machine and on the one that loads it"
            )
        aside = path.with_name(f".{path.name}.partial")
        try:
            names = [one.name for one in wanted]
            self.context.run(self.engine.save(names, aside), f"write the images into {path}")
            if not self.context.dry:
                aside.replace(path)
                console.note(f"{path}: {len(names)} images, {console.size(path.stat().st_size)}")
        finally:
            if not self.context.dry:
                self.context.host.remove(aside)

    def load(self, source: str) -> None:
        """Have the engine read images from a file.

        :raises StackError: it is not there, or none that the engine reads.
        """
        path = Path(source).expanduser().absolute()
        if not path.is_file():
            raise UsageError(f"there is no file {path}", fix="name one that inv dev.images --save has written")
        self.context.run(self.engine.load(path), f"read the images in {path}")

    def _build(self, build: builds.Build) -> str:
        """Build an image; its id.

        :raises StackError: it could not be built.
        """
        base = build.arguments[BASE]
        console.note(f"building {build.tag} from {base} (once, until what it is made of changes)")
        if self.context.dry:
            console.command(
                self.engine.build(build.tag, Path("FOLDER") / builds.CONTAINERFILE, Path("FOLDER"), build.arguments)
            )
            return ""
        with tempfile.TemporaryDirectory(prefix="nv-build-") as made:
            folder = Path(made)
            for name, content in build.files.items():
                (folder / name).write_text(content, encoding="utf-8")
            command = self.engine.build(build.tag, folder / builds.CONTAINERFILE, folder, build.arguments)
            try:
                self.context.run(command, f"build the image {build.tag}")
            except StackError as error:
                raise StackError(
                    error.what, why=error.why, evidence=error.evidence, fix=[*_build_fixes(error), OFFLINE]
                ) from None
        return self.id_of(build.tag)


def _build_fixes(error: StackError) -> list[str]:
    text = "\n".join(error.evidence)
    if "CERTIFICATE_VERIFY_FAILED" in text or "certificate" in text:
        return ["behind a proxy that inspects TLS: set stack.ca_bundle to the file of its certificates"]
    return list(error.fix)
