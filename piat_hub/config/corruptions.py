"""The corruptions of Hendrycks & Dietterich 2019 (arXiv:1903.12261): their names, and the errors that mCE is relative to."""

SEVERITIES = 5
ALEXNET = {  # corruption: AlexNet's mean error on ImageNet-C over the five severities, as its authors publish it
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
COMMON = tuple(ALEXNET)  # the 15 that a mean is over
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
