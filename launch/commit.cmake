# SPDX-License-Identifier: Apache-2.0
# The commit that is being built, for --version: asked at every build, written only where it has changed, so that nothing is compiled
# for nothing. -DSOURCE=the project's folder -DOUT=the header. A copy outside git, or inside somebody else's, is "unknown".
get_filename_component(above ${SOURCE} DIRECTORY)
set(ENV{GIT_CEILING_DIRECTORIES} ${above})
execute_process(COMMAND git --no-optional-locks -C ${SOURCE} describe --always --dirty --abbrev=12 --exclude=* OUTPUT_VARIABLE commit
  OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
if(failed)
  set(commit "unknown")
endif()
file(CONFIGURE OUTPUT ${OUT} CONTENT "#define GLOWQ_COMMIT \"${commit}\"\n")
