"""What the agent should not look at, in frames of DeepMind Control: colours and backgrounds that mean nothing.

In the manner of the DMControl Generalization Benchmark (Hansen and Wang, arXiv 2011.13389), but generated: no files.
Only frames are changed; states and rewards are those of the task.
"""

import abc
from typing import Any

import gymnasium as gym
import numpy as np

from rl_ae.envs.frames import Frame
from rl_ae.envs.suites import import_extra

Mask = np.ndarray[Any, np.dtype[np.bool_]]
Labels = np.ndarray[Any, np.dtype[np.int32]]

#: MuJoCo's colour of a shape that states none: its material's is used.
_NO_COLOR = np.array([0.5, 0.5, 0.5, 1.0], np.float32)
#: Label of pixels that show no object of the model, in the segmentation's last axis (id, type).
_NOTHING = -1


class Distraction(gym.Wrapper[Any, Any, Any, Any], abc.ABC):
    """Base of the distractions: an environment whose ``render()`` is distracted, anew every episode.

    ``reset(seed=s)`` seeds the distractions with ``seed`` and ``s``; without a seed they go on from the episode before.

    Args:
        env: A dm_control environment, wrapped by shimmy, with ``render_mode="rgb_array"``.
        seed: Of the distractions; the same task with others.

    Raises:
        ValueError: If the environment is not dm_control's, or the seed is negative.
    """

    def __init__(self, env: gym.Env[Any, Any], seed: int = 0) -> None:
        super().__init__(env)
        physics = getattr(env.unwrapped, "physics", None)
        if physics is None or env.render_mode != "rgb_array":
            raise ValueError(
                "distractions need an environment of dm_control with render_mode='rgb_array', "
                f"got {env.unwrapped} with {env.render_mode!r}"
            )
        if seed < 0:
            raise ValueError(f"the seed of distractions must be ≥ 0, got {seed}")
        self.physics = physics
        self.seed = seed
        self.generator = np.random.default_rng(seed)
        self.frame = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.generator = np.random.default_rng((self.seed, seed))
        observation, info = self.env.reset(seed=seed, options=options)
        self.frame = 0
        self.begin_episode()
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.frame += 1
        return self.env.step(action)

    @abc.abstractmethod
    def begin_episode(self) -> None:
        """Draw the episode's distraction from ``generator``."""


class RandomColors(Distraction):
    """``color``: shapes, materials, textures, the sky's among them, and lights get other colours, anew every episode.

    Colours are uniform; transparency and the light and dark of textures stay. See :class:`Distraction` for arguments
    and errors.
    """

    def __init__(self, env: gym.Env[Any, Any], seed: int = 0) -> None:
        super().__init__(env, seed)
        model = self.physics.model
        self._upload = import_extra("mujoco", str(env), "dmc").mjr_uploadTexture
        self._has_own_color = (model.geom_matid < 0) | np.any(model.geom_rgba != _NO_COLOR, axis=1)
        self._has_no_texture = np.all(model.mat_texid < 0, axis=1)
        brightness = [self._texture(texture).mean(axis=1, keepdims=True) for texture in range(model.ntex)]
        self._brightness = [each / max(each.max(), 1) for each in brightness]

    def begin_episode(self) -> None:
        """Draw colours."""
        model, uniform = self.physics.model, self.generator.uniform
        model.mat_rgba[self._has_no_texture, :3] = uniform(size=(self._has_no_texture.sum(), 3))
        model.geom_rgba[self._has_own_color, :3] = uniform(size=(self._has_own_color.sum(), 3))
        model.light_diffuse[:] = uniform(0.4, 1.0, size=(model.nlight, 3))  # never dark
        contexts = self.physics.contexts
        with contexts.gl.make_current() as context:
            for texture, brightness in enumerate(self._brightness):
                self._texture(texture)[:] = np.round(255 * brightness * uniform(size=3))
                context.call(self._upload, model.ptr, contexts.mujoco.ptr, texture)

    def _texture(self, index: int) -> Frame:
        """A texture's pixels in the model's memory, without transparency: (H·W, 3)."""
        model = self.physics.model
        start, channels = model.tex_adr[index], model.tex_nchannel[index]
        size = model.tex_height[index] * model.tex_width[index] * channels
        pixels: Frame = model.tex_data[start : start + size].reshape(-1, channels)[:, :3]
        return pixels


class MovingBackground(Distraction):
    """``video``: a smooth moving pattern instead of the sky, which is what belongs to no object.

    See :class:`Distraction` for arguments and errors.
    """

    def begin_episode(self) -> None:
        """Draw a pattern."""
        self._pattern = MovingPattern(self.generator)

    def render(self) -> Any:
        frame = np.array(self.env.render())
        labels = self.physics.render(**self.get_wrapper_attr("render_kwargs"), segmentation=True)
        replaced = self.is_background(labels[..., 0], labels[..., 1])
        frame[replaced] = self._pattern.render(frame.shape[0], frame.shape[1], self.frame)[replaced]
        return frame

    def is_background(self, objects: Labels, types: Labels) -> Mask:
        """Which pixels to replace.

        Args:
            objects: (H, W), the index of the object a pixel shows; -1 for none.
            types: (H, W), its type, one of MuJoCo's ``mjtObj``.

        Returns:
            (H, W).
        """
        mask: Mask = types == _NOTHING
        return mask


class MovingSurroundings(MovingBackground):
    """``video_hard``: the moving pattern instead of the floor, walls and rails as well.

    All shapes of the world itself, that is, but targets: without them a task could not be solved. See
    :class:`Distraction` for arguments and errors.
    """

    def __init__(self, env: gym.Env[Any, Any], seed: int = 0) -> None:
        super().__init__(env, seed)
        model = self.physics.model
        self._geom = int(import_extra("mujoco", str(env), "dmc").mjtObj.mjOBJ_GEOM)
        is_target = np.array([model.id2name(geom, "geom").startswith("target") for geom in range(model.ngeom)])
        self._is_surroundings = (model.geom_bodyid == 0) & ~is_target

    def is_background(self, objects: Labels, types: Labels) -> Mask:
        is_geom = types == self._geom
        mask: Mask = is_geom & self._is_surroundings[np.where(is_geom, objects, 0)]
        return mask | super().is_background(objects, types)


class MovingPattern:
    """A sum of drifting sinusoids in random colours.

    Args:
        generator: Draws waves, drift and colours.
    """

    #: Sinusoids; standard deviation of their frequency in cycles a height; the fastest drift in cycles a frame.
    WAVES, FREQUENCY, DRIFT = 6, 1.5, 0.02

    def __init__(self, generator: np.random.Generator) -> None:
        self.frequency = generator.normal(scale=self.FREQUENCY, size=(self.WAVES, 2))
        self.phase = generator.uniform(size=self.WAVES)
        self.drift = generator.uniform(-self.DRIFT, self.DRIFT, size=self.WAVES)
        self.mean = generator.uniform(0.3, 0.7, size=3)
        self.amplitude = generator.normal(scale=0.4 / np.sqrt(self.WAVES), size=(self.WAVES, 3))

    def render(self, height: int, width: int, frame: int) -> Frame:
        """The pattern as an image.

        Args:
            height: Rows.
            width: Columns.
            frame: Time, in frames.

        Returns:
            (H, W, 3).
        """
        rows, columns = np.indices((height, width)) / height
        cycles = rows[..., None] * self.frequency[:, 0] + columns[..., None] * self.frequency[:, 1]
        waves = np.sin(2 * np.pi * (cycles + self.phase + self.drift * frame))
        colors = np.clip(self.mean + waves @ self.amplitude, 0, 1)
        pattern: Frame = np.round(255 * colors).astype(np.uint8)
        return pattern


#: name → distraction; ``None`` for the task as it is.
DISTRACTIONS: dict[str, type[Distraction] | None] = {
    "none": None,
    "color": RandomColors,
    "video": MovingBackground,
    "video_hard": MovingSurroundings,
}
