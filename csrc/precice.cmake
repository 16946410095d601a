# The target precice::precice where preCICE 3 is found: by its own package, else by pkg-config, which knows its folder
# where CMake does not.
find_package(precice 3 QUIET CONFIG)
if(NOT TARGET precice::precice)
  find_package(PkgConfig QUIET)
  if(PKG_CONFIG_FOUND)
    pkg_check_modules(libprecice QUIET IMPORTED_TARGET "libprecice>=3" "libprecice<4")
  endif()
  if(TARGET PkgConfig::libprecice)
    add_library(precice::precice ALIAS PkgConfig::libprecice)
  endif()
endif()
