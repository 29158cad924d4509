"""The neural SDE for video prediction: notation, training targets, losses, dynamics, prediction and score.

The model is that of arXiv 2501.18871. The reference code is https://github.com/NeuralSDE/NeuralSDE, which builds on
Araachie/river. Other modules cite this text as `raypipe.sde`. Shapes leave out the batch dimension; tensors are
float32; symbols without a shape are scalars. Each heading names the modules that implement the section; a name such as
sde.sigma is a config field.

Notation (raypipe.models.autoencoder, raypipe.sde.path)

    t        index of a frame; one frame interval is one unit of time
    u        time within a frame interval, from 0 to 1
    x_t      frame t, values in [-1, 1]                                                       [3, H, W]
    C        number of latent channels
    h, w     height and width of a latent: H and W divided by the autoencoder's downsampling factor
    E        encoder of the autoencoder; E(x_t) is taken before quantization                  [C, h, w]
    scale    standard deviation of E(x_t) on training frames, per channel                     [C]
    z_t      latent E(x_t) / scale                                                            [C, h, w]
    K        number of frames in the state (model.num_input_frames)
    X_t      state (z_{t-K+1}, ..., z_t), concatenated along the channels                     [K*C, h, w]

Path and targets (raypipe.sde.path)

    X_u = (1 - (1-sigma) u) X_t + u X_{t+1}     straight path between two states, u ~ U(0,1)  [K*C, h, w]
    X~  = X_u + eps                             noise injection, eps ~ N(0, s^2 I)            [K*C, h, w]
    v   = z_{t+1} - (1-sigma) z_t               velocity target, of the last frame            [C, h, w]

    s is the noise level (train.noise_std) and sigma = 1e-7 (sde.sigma). v equals the last frame of
    (X_{t+1} - (1-sigma) X_u) / (1 - (1-sigma) u), but is computed without the division, whose denominator
    approaches sigma as u approaches 1.

Networks (raypipe.models.components, on a backbone of raypipe.models.backbones)

    f(X, u)  flow: velocity of the last frame                                                 [C, h, w]
    d(X)     denoiser: estimate of -eps                                                       [K*C, h, w]
    o(X, u)  raw output of the diffusion network                                              [C, h, w]
    g(X, u)  diffusion: log g = lo + (tanh(o) + 1)/2 (hi - lo)                                [C, h, w]

    [lo, hi] = [-9, 1] (model.logit_range). A constant diffusion, g = m std, replaces the diffusion network where none
    is used (raypipe.sde.dynamics.ConstantDiffusion). std, [C], is the root mean square of v - f(X_t, 0) per channel
    on training windows (raypipe.forecast.scoring), and m is a scalar, one of evaluation.multipliers.

    A joint network takes the place of flow and diffusion, and is evaluated once where they are evaluated twice
    (sde.noise):

    (f, g)(X, u)  additive: one trunk with two heads                                          [2*C, h, w]
    f(X, u, q)    input: a flow that sees the noise of the frame interval; no g               [C, h, w]
                  flow_matching, foellmer: the rivals, see raypipe.sde.interpolants

    Time input: if model.time_input is set, flow and diffusion also see u. In the transformer, one Linear(1, inner_dim)
    of u is added to all tokens; in the convolutional network, one in every block. u is set to 0 in a fraction
    sde.zero_share of the training samples. The reference code has no time input. Without it, the end of one interval
    and the start of the next are the same input with two different velocities, and the network learns an average of
    the two. The denoiser never sees u.

Losses (raypipe.sde.losses, raypipe.training.component); mean is over the batch and all elements

    flow       nll         mean(log((v - f)^2 + delta) - log delta),  f = f(X~, u)
               mse         mean((v - f)^2)
    denoiser               mean((d + eps)^2),  d = d(X~)
    diffusion  regression  mean((g - |r|)^2) + mean((log g - log(r^2 + 1e-6)/2)^2),  g = g(X~, u)
               nll         mean(r^2/(2 g^2) + log g)
               crps, energy, crps_energy: as for joint, after nll, in forecasts with the frozen flow f

    joint      velocity    additive: mean((v - f)^2) + 0.1 mean(r^2/(2 g^2) + log g), with r = v - f as a constant
                           input: mean((v - f(X_t + eps, u, (1-u) c xi + u v))^2 / c^2), xi ~ N(0, I)
               crps        crps of a forecast of T frames with M members
               energy      energy of the same
               crps_energy crps + energy

    If the loss is a score, the first 1 - train.score_share of the steps train on the velocity. In the rest, forecasts
    are made through the solver (T = train.forecast_frames, M = train.forecast_members), their scores are the loss, and
    the gradient passes through all frames. The scores are almost fair (arXiv 2412.15832), see `Score`. With noise as an
    input, the velocity's loss is that of flow matching, which teaches forecasts with many steps; the scores then teach
    few steps to do. A network that sees one xi for a whole frame can move a body as a whole, where g dW blurs it; the
    idea is that of FGN (arXiv 2506.10772).

    delta = 1e-3 (sde.delta). r = v - f(X~, u), [C, h, w], is the residual of a trained flow, whose weights are frozen.

    The nll of the diffusion is the negative log-likelihood of r ~ N(0, g^2), up to a constant. Minimized over g, it
    is log(r^2)/2 up to a constant; the nll of the flow is twice that, with delta added to r^2.

Dynamics (raypipe.sde.dynamics)

    dX = [F(X, u) + alpha d(X)] du + beta G(X, u) dW          Ito SDE with diagonal noise     [K*C, h, w]

    F = (z_{t-K+2} - z_{t-K+1}, ..., z_t - z_{t-1}, f)        drift                           [K*C, h, w]
    G = (0, ..., 0, g)                                        diagonal of the diffusion       [K*C, h, w]
    W   Brownian motion; only its last frame, [C, h, w], acts and is drawn                    [K*C, h, w]

    With noise as an input (sde.noise: input) it is a random differential equation for the last frame z_u:

    dz_u = [f(X_t, u, q_u) - (z_u - z_t)] / (1 - u) du,   q_u = (1 - u) c beta xi + z_u - z_t     [C, h, w]

    xi = W(1) - W(0), [C, h, w], is the increment of the Brownian motion over the frame interval, c [C, 1, 1] the root
    mean square of z_{t+1} - z_t in the training latents. f predicts the way from z_t to z_{t+1}, of which z_u - z_t is
    done. At u = 0 the network sees noise alone, so one step is z_{t+1} = z_t + f(X_t, 0, c beta xi); towards u = 1 the
    movement takes the place of the noise. If f = E[z_{t+1} - z_t | X_t, q_u], this is flow matching (arXiv 2210.02747),
    written for the movement instead of q: with many steps, z_{t+1} then has the distribution of the next frame.

    The older frames move along straight lines to their successors, which are known; only the last frame follows the
    flow and receives noise. alpha (evaluation.alphas) is the denoising magnitude. The derivation of the reference code
    requires alpha >= 1; smaller values are accepted here, and 0 omits the denoiser. beta (evaluation.betas) is the
    diffusion magnitude; 0 makes the forecast deterministic.

Prediction (raypipe.sde.rollout, raypipe.sde.solvers, raypipe.sde.brownian)

    1. Integrate the SDE from X = X_t at u = 0 to u = 1 in n steps (evaluation.steps) of a solver.
    2. The last frame of the result, [C, h, w], is the predicted z_{t+1}.
    3. Append it to the window of K frames, drop the oldest frame, and repeat with t + 1.

    In-between frames are the last frame of the solution at u = 1/k, ..., (k-1)/k, where k is the argument `interpolate`
    of `rollout`. The members of an ensemble differ only in their Brownian motion W. To decode a latent, it is
    multiplied by scale and quantized, if the autoencoder has a quantizer, before the decoder.

Score (raypipe.metrics.ensemble), on latents: M members y_1, ..., y_M of a forecast of N frames

    y, y_i     truth and member i                                                             [N, C, h, w]
    crps       = mean_i |y_i - y| - sum_{i<j} |y_i - y_j| / (M (M-1))   fair CRPS per element [N, C, h, w]
    crps_ratio = mean(crps) / mean(|z_t - y|)

    energy     = mean_i ||y_i - y|| - sum_{i<j} ||y_i - y_j|| / (M (M-1))   fair energy score of a frame  [N]

    || || is the root mean square over a frame. The almost fair scores, for training, have (1 - (1-a)/M) times the
    second term, a = 0.95.

    z_t, [C, h, w], is the last given frame. The denominator is the CRPS of persistence, the forecast that repeats z_t.
    Both means are over windows, predicted frames and elements. 0 is a perfect forecast; 1 is as good as persistence.
"""
