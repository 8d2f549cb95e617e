# An image with raycap and all that it needs, for kuberay.yaml, and for cluster.yaml where nodes must start fast:
#
#     docker build -t REGISTRY/raycap:0.1.0 . && docker push REGISTRY/raycap:0.1.0
#
# Ray, Python and the user `ray` are the base image's; its Ray must be the one of requirements.txt.
FROM rayproject/ray:2.60.0-py311-gpu
WORKDIR /home/ray/raycap
# first, so that a change of raycap does not install 7 GB again
COPY --chown=ray:users requirements.txt ./
RUN pip install --no-cache-dir -r requirements.txt
COPY --chown=ray:users pyproject.toml README.md LICENSE ./
COPY --chown=ray:users raycap raycap
COPY --chown=ray:users jobs jobs
RUN pip install --no-cache-dir --no-deps .
ENV RAY_USAGE_STATS_ENABLED=0
