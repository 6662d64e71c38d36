# The image that a challenge gets, from the image of docker/Dockerfile:
#   docker build -f docker/Dockerfile -t luna16_monai:latest .
#   docker build -f docker/challenge.Dockerfile -t luna16_challenge docker
# grand-challenge starts it as a server, because of the label, and asks GET /health and POST /invoke. To be started once
# for each case instead: --build-arg METHOD=exec, and run it with the word "challenge".
# Never built, for want of a Docker engine; tests/test_docker.py runs the entrypoint with these words.
ARG IMAGE=luna16_monai:latest
# hadolint ignore=DL3006
FROM ${IMAGE}
ARG METHOD=invoke
LABEL org.grand-challenge.api-method="${METHOD}"
EXPOSE 4743
CMD ["challenge", "--serve"]
