"""Ways on which a network that sees noise leads from one frame to the next: stochastic interpolants (arXiv 2303.08797).

With m = z_{t+1} - z_t [C, h, w], the movement that is to be predicted, and e = c xi, xi ~ N(0, I), where c [C, 1, 1] is
the root mean square of m in the training latents, so that the noise is as large as the movements:

    y_u  the way z_u - z_t that the last frame has gone at the time u, with y_0 = 0 and y_1 = m
    q_u  what the network sees beside the given frames X_t and u
    f    its answer, trained on the mean square of (target - f) / c, so in the limit the mean of the target given q_u

    sde.noise      y_u in training          q_u            target         dy_u in a forecast
    input          u m                      (1-u) e + y_u  m              (f - y_u) / (1-u) du
    flow_matching  u m                      (1-u) e + y_u  m - e          (f + e) du
    foellmer       u m + (1-u) sqrt(u) e    y_u            m - sqrt(u) e  [(1+u) f - y_u] du + c sqrt(1-u^2) dW

In forecasts, xi = W(1) - W(0) is drawn once for a frame, or W is the Brownian motion; both are those of
`raypipe.sde.brownian`. The movement z_{t+1} - z_t in place of z_{t+1}, and c as the size of the noise, are ours: so the
networks are those of `input`, and their targets need not repeat the last frame. `input` is described in `raypipe.sde`.

flow_matching: flow matching (arXiv 2210.02747, sigma_min = 0) given the known frames, as in river (arXiv 2211.14575,
which starts from noise around 0 and sees two of the known frames). x_u = z_t + q_u goes from the noise x_0 = z_t + e to
x_1 = z_{t+1} on a straight line with the velocity x_1 - x_0 = m - e; dx_u = f du, and x_u - z_u = (1-u) e.

foellmer: probabilistic forecasting with Foellmer processes (PFI, arXiv 2403.13724). With alpha = 1-u, beta = u and
sigma = c (1-u), its interpolant is x_u = alpha z_t + beta z_{t+1} + sigma W_u, W_u = sqrt(u) xi: from the current
frame, a point, to the next one. The target is alpha' z_t + beta' z_{t+1} + sigma' W_u = m - sqrt(u) e, where ' is d/du.
For any g, dx = [f + (g^2 - sigma^2) / 2 s] du + g dW has the distribution of x_u at all times, with the score

    s = (beta f - beta' x_u - (beta alpha' - beta' alpha) z_t) / (u sigma (beta' sigma - beta sigma'))

which is (u f - y_u) / (c^2 u (1-u)) here. That g at which an error of f changes the distribution of paths least makes
it a Foellmer process: g^2 = |2 u sigma^2 (log(beta / (sqrt(u) sigma)))'| = c^2 (1 - u^2). Its drift is (1+u) f - y_u.
"""

from collections.abc import Callable, Mapping

from torch import Tensor

LEAST_LEFT = 0.05
"""Least 1 - u by which the way that is left is divided: a solver may evaluate the drift at u = 1, too."""


class Interpolant:
    """The formulas of `sde.noise: input`, of which the others change some.

    movement: m, gone: y_u, noise: e, all [b, C, h, w]. u: [b, 1, 1, 1] in training, a number in forecasts. profile:
    u -> g / c, if the noise acts as g dW, so that e is 0 in forecasts; None: e is drawn once for a frame.
    """

    profile: Callable[[Tensor], Tensor] | None = None

    def gone(self, movement: Tensor, noise: Tensor, u: Tensor) -> Tensor:
        """y_u in training."""
        return u * movement

    def seen(self, gone: Tensor, noise: Tensor, u: Tensor | float) -> Tensor:
        """q_u."""
        return (1 - u) * noise + gone

    def target(self, movement: Tensor, noise: Tensor, u: Tensor) -> Tensor:
        """What the network should answer."""
        return movement

    def drift(self, answer: Tensor, gone: Tensor, noise: Tensor, u: float) -> Tensor:
        """The drift of y_u, given the answer of the network."""
        return (answer - gone) / max(1 - u, LEAST_LEFT)


class FlowMatching(Interpolant):
    """Flow matching from noise around the last frame to the next frame."""

    def target(self, movement: Tensor, noise: Tensor, u: Tensor) -> Tensor:
        return movement - noise

    def drift(self, answer: Tensor, gone: Tensor, noise: Tensor, u: float) -> Tensor:
        return answer + noise


class Foellmer(Interpolant):
    """The Foellmer process from the last frame to the next frame."""

    @staticmethod
    def profile(u: Tensor) -> Tensor:
        return (1 - u.square()).sqrt()

    def gone(self, movement: Tensor, noise: Tensor, u: Tensor) -> Tensor:
        return u * movement + (1 - u) * u.sqrt() * noise

    def seen(self, gone: Tensor, noise: Tensor, u: Tensor | float) -> Tensor:
        return gone

    def target(self, movement: Tensor, noise: Tensor, u: Tensor) -> Tensor:
        return movement - u.sqrt() * noise

    def drift(self, answer: Tensor, gone: Tensor, noise: Tensor, u: float) -> Tensor:
        return (1 + u) * answer - gone


INPUT = Interpolant()
INTERPOLANTS: Mapping[str, Interpolant] = {
    "input": INPUT,
    "flow_matching": FlowMatching(),
    "foellmer": Foellmer(),
}
"""By `sde.noise`, where the network sees noise."""
